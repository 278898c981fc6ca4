"""In which cases a bug is looked for below the noise: a loud one until it is clear that a row would have shown it."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.campaign import campaign

import refimpl.oracle.campaign as campaigns
from refimpl.engines import registry
from refimpl.oracle.bases import BATCHES, OTHER_BATCHES
from refimpl.oracle.below import candidates_in_all
from refimpl.oracle.check import check
from refimpl.oracle.context import Context
from refimpl.oracle.diagnosis.candidate import Candidate
from refimpl.oracle.diagnosis.power import is_loud
from refimpl.oracle.reports.result import CampaignSettings, PlayedCase
from refimpl.oracle.reports.summary import _seen_from

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")
LOUD = "adapters_ignored"


def test_a_loud_bug_is_looked_for_once_and_a_faint_one_in_all_cases(tmp_path: Path) -> None:
    result = campaign(tmp_path, dtype="bfloat16", cases=4, below=True)
    cases = {
        one.mutant.name: sum(one.mutant.name in played.terms for played in result.played) for one in result.candidates
    }
    loud = {one.mutant.name for one in result.candidates if is_loud(one.terms, result.thresholds)}
    assert result.verdict == "pass" and cases["scale_times[1.01]"] == len(result.played) == 4
    assert "scale_times[1.01]" not in loud and loud
    result = campaign(tmp_path / "float32", cases=4, below=True)
    assert sum(LOUD in played.terms for played in result.played) == 1
    assert result.power[LOUD] == "detected"


@pytest.mark.parametrize("is_late", [False, True])
def test_once_one_is_suspicious_all_are_compared_in_all_cases(
    is_late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the budget has time for it; what is known stays."""

    def in_all(context: Context, cases: list[PlayedCase]) -> list[Candidate]:
        return candidates_in_all(replace(context, end=0.0) if is_late else context, cases)

    monkeypatch.setattr(campaigns, "suspicious", lambda candidates: candidates[:1])
    monkeypatch.setattr(campaigns, "candidates_in_all", in_all)
    result = campaign(tmp_path, cases=4, below=True)
    (loud,) = [one for one in result.candidates if one.mutant.name == LOUD]
    assert result.verdict == "fail" and len(loud.terms) == 4
    assert sum(bool(terms) for terms in loud.terms) == (1 if is_late else 4)


def test_what_one_base_has_shown_is_not_looked_for_on_the_next(tmp_path: Path) -> None:
    plan = CampaignSettings(cases=BATCHES - OTHER_BATCHES + 2, sequences=0)
    result = check(lambda: registry.make("numpy", {}), "random", {}, plan, tmp_path)
    first = [played for played in result.played if played.case.name.startswith("base 0, batch")]
    other = [played for played in result.played if played not in first]
    assert result.verdict == "pass" and len(other) == 2
    assert any(LOUD in played.terms for played in first) and not any(LOUD in played.terms for played in other)
    assert result.power[LOUD] == "detected" and LOUD in _seen_from(result)
