"""`loracle check --model random`: several bases in turn, until one shows the bug."""

from pathlib import Path

import pytest

import refimpl.oracle.campaign as campaign_module
import refimpl.oracle.check as check_module
from refimpl.engines import registry
from refimpl.oracle.cases.variety import TURNS
from refimpl.oracle.check import check, shares
from refimpl.oracle.reports.result import CampaignSettings, Explanation, Result

PLAN = CampaignSettings(cases=8, sequences=0, below=False)


@pytest.fixture(autouse=True)
def short_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "BATCHES", 2)


def checked(engine: str, folder: Path, plan: CampaignSettings = PLAN) -> Result:
    return check(lambda: registry.make(engine, {}), "random", {}, plan, folder)


def test_a_clean_engine_passes_on_every_base(tmp_path: Path) -> None:
    result = checked("numpy", tmp_path)
    assert result.verdict == "pass"
    names = [p.case.name for p in result.played]
    assert len(names) == PLAN.cases == len(set(names))
    assert {name.partition(",")[0] for name in names} == {"base 0", "base 1", "base 2", "base 3"}


def test_a_short_campaign_stays_on_one_base(tmp_path: Path) -> None:
    names = [
        p.case.name for p in checked("numpy", tmp_path, CampaignSettings(cases=2, sequences=0, below=False)).played
    ]
    assert names == ["base 0, batch 0", "base 0, batch 1"]


def test_a_bug_that_needs_a_base_with_biases_is_found_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        campaign_module, "explain", lambda *_: Explanation()
    )  # which takes its time, and has its own tests
    result = checked("mutant:saved_biases_dropped", tmp_path)
    assert result.verdict == "fail"
    failed = [p.case.name for p in result.played if p.verdict == "fail"]
    assert failed and all(name.startswith("base 2") for name in failed)
    assert not any(p.case.name.startswith("base 3") for p in result.played)
    assert result.testbed.model.config.attention_bias


@pytest.mark.parametrize(("cases", "sequences"), [(50, 20), (1, 0), (3, 2), (0, 5), (68, 32), (200, 9)])
def test_shares_are_the_whole_plan(cases: int, sequences: int) -> None:
    parts = shares(CampaignSettings(cases, sequences, seed=7, budget=8.0))
    assert (sum(p.cases for p in parts), sum(p.sequences for p in parts)) == (cases, sequences)
    assert all(p.cases + p.sequences > 0 for p in parts) and len(parts) <= TURNS
    assert sum(p.budget or 0 for p in parts) == pytest.approx(8.0)
    assert [p.seed for p in parts] == list(range(7, 7 + len(parts)))


def test_a_shorter_plan_asks_the_beginning_of_a_longer_one() -> None:
    short, long = shares(CampaignSettings(5, 0)), shares(CampaignSettings(7, 0))
    assert [p.cases for p in short] == [2, 2, 1]
    assert [p.cases for p in long] == [2, 2, 2, 1]
