"""`loracle check --model random`: several bases in turn, until one shows the bug."""

from dataclasses import replace
from pathlib import Path

import pytest

import refimpl.oracle.bases as bases_module
import refimpl.oracle.campaign as campaign_module
from refimpl.engines import registry
from refimpl.oracle.bases import shares
from refimpl.oracle.cases.variety import TURNS
from refimpl.oracle.check import check
from refimpl.oracle.reports.result import CampaignSettings, Explanation, Result

PLAN = CampaignSettings(cases=8, sequences=0, below=False)


@pytest.fixture(autouse=True)
def short_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases_module, "BATCHES", 3)
    monkeypatch.setattr(bases_module, "OTHER_BATCHES", 1)


def checked(engine: str, folder: Path, plan: CampaignSettings = PLAN) -> Result:
    return check(lambda: registry.make(engine, {}), "random", {}, plan, folder)


def test_a_clean_engine_passes_on_every_base(tmp_path: Path) -> None:
    plan = replace(PLAN, cases=10)
    result = checked("numpy", tmp_path, plan)
    assert result.verdict == "pass"
    names = [p.case.name for p in result.played]
    assert len(names) == plan.cases == len(set(names))
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
    assert result.verdict == "fail" and set(result.unasked.split()) >= {"failed", "of", "more"}
    failed = [p.case.name for p in result.played if p.verdict == "fail"]
    assert failed and all(name.startswith(failed[0].rpartition(",")[0]) for name in failed)
    assert result.played[-1].case.name.startswith(failed[0].rpartition(",")[0])
    assert any(result.testbed.model.config.has_bias(module) for module in result.testbed.model.config.layer_modules)


@pytest.mark.parametrize(("cases", "sequences"), [(50, 20), (1, 0), (3, 2), (0, 5), (68, 32), (200, 9)])
def test_shares_are_the_whole_plan(cases: int, sequences: int) -> None:
    for families in ((), ("llama", "mistral"), ("llama", "qwen3", "gpt_oss")):
        pairs = shares(CampaignSettings(cases, sequences, seed=7, budget=8.0), families)
        parts = [share for share, _ in pairs]
        assert (sum(p.cases for p in parts), sum(p.sequences for p in parts)) == (cases, sequences)
        assert all(p.cases + p.sequences > 0 for p in parts) and len(parts) <= 2 * TURNS
        assert sum(p.budget or 0 for p in parts) == pytest.approx(8.0)
        llamas = [share.seed for share, family in pairs if not family]
        assert llamas == list(range(7, 7 + len(llamas))) and len(llamas) <= TURNS
        assert {family for _, family in pairs} <= {"", *families} - {"llama", "mistral"}
        if cases >= 50:
            assert {family for _, family in pairs} - {""} == set(families) - {"llama", "mistral"}


@pytest.mark.parametrize(("cases", "sequences"), [(50, 20), (2, 0), (0, 3), (4, 1)])
def test_families_that_are_named_get_as_much(cases: int, sequences: int) -> None:
    names = ("qwen3", "gpt_oss", "phi3")
    pairs = shares(CampaignSettings(cases, sequences, families=names), ("llama",))
    assert (sum(p.cases for p, _ in pairs), sum(p.sequences for p, _ in pairs)) == (cases, sequences)
    assert {family for _, family in pairs} <= set(names)
    assert max(p.cases for p, _ in pairs) - min(p.cases for p, _ in pairs) <= 1


def test_a_shorter_plan_asks_the_beginning_of_a_longer_one() -> None:
    short, long = shares(CampaignSettings(5, 0)), shares(CampaignSettings(7, 0))
    assert [p.cases for p, _ in short] == [3, 2]
    assert [p.cases for p, _ in long] == [3, 3, 1]
    families = ("llama", "qwen3")
    pairs = [shares(CampaignSettings(cases, 0), families) for cases in (5, 9)]
    assert [(p.cases, family) for p, family in pairs[0]] == [(2, ""), (1, "qwen3"), (2, "")]
    assert [(p.cases, family) for p, family in pairs[1]] == [(2, ""), (1, "qwen3")] * 3
