"""An engine that never answers: the budget, or a signal, ends the check with what is known, and it is no pass."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.testbed import small_testbed

from refimpl.engines.function import Function
from refimpl.engines.interface import EngineRequest
from refimpl.engines.ours import Ours
from refimpl.oracle import below
from refimpl.oracle import explain as explaining
from refimpl.oracle.bases import joined
from refimpl.oracle.below import candidates_below, cases_below
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.cases.case import Case, Run
from refimpl.oracle.cases.testbed import settings
from refimpl.oracle.causes.statement import CauseReport, Tokens
from refimpl.oracle.diagnosis.workers import InProcess, adopt
from refimpl.oracle.keep import keep
from refimpl.oracle.noise.verdict import learn_thresholds
from refimpl.oracle.reports.result import CampaignSettings, Explanation, PlayedCase, Result
from refimpl.oracle.reports.summary import summary
from refimpl.oracle.watchdog import BUDGET, SIGNAL, Watchdog

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="on Windows no signal breaks off what waits")
PLAN = CampaignSettings(4, 0, below=False)


class StopsAnswering(Ours):
    """It answers `answers` batches, and then never again."""

    def __init__(self, answers: int, first: float = 1.0) -> None:
        super().__init__()
        self.answers, self.first = answers, first

    def run(self, requests, forced=None):
        if not self.answers:
            time.sleep(1e6)
        self.answers -= 1
        responses = super().run(requests, forced)
        return [replace(one, logits=self.first * one.logits) for one in responses]


def stopped(engine: Ours, budget: float, folder: Path) -> Result:
    """What a campaign comes to that has so many seconds."""
    testbed = small_testbed()
    with Watchdog(budget) as watch:
        return Campaign(lambda: engine, testbed, PLAN, folder, watch=watch).run()


@POSIX
@pytest.mark.parametrize(("answers", "factor", "verdict"), [(0, 1.0, "undecided"), (2, 1.5, "fail")])
def test_the_budget_ends_a_call_that_does_not_return(answers: int, factor: float, verdict: str, tmp_path: Path) -> None:
    result = stopped(StopsAnswering(answers, factor), 1.0 + answers / 2, tmp_path)  # an answer takes milliseconds
    assert (result.verdict, len(result.played), result.stopped_by) == (verdict, answers, BUDGET)
    assert result.diagnostics[-1] == (
        f"the budget of {1 + answers // 2} s ended while the engine was asked batch {answers}: it hangs, or --budget "
        f"is too small; {answers} of 4 cases were measured"
    )
    report = summary(result, "hangs")
    assert (report["cases"], report["worst_noise_ratio"] is None) == (answers, not answers)


def test_what_is_known_of_a_failure_is_there_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(explaining, "_symptoms", stop)  # the smallest failure was said before
    engine = StopsAnswering(10**6, 1.5)
    result = Campaign(lambda: engine, small_testbed(), replace(PLAN, cases=1), tmp_path / "work").run()
    assert (result.verdict, result.stopped_by) == ("fail", SIGNAL)
    report = summary(result, "ours")
    assert report["smallest_failure"] and report["smallest_in_words"].endswith("it is wrong")
    folder = keep(result, tmp_path / "repro", "ours", {}, 0, lambda: pytest.fail("it is asked once more"))
    assert "logits" in (folder / "README.md").read_text("utf-8") and result.explanation.repeats


@POSIX
def test_an_engine_that_swallows_the_exception_is_stopped_as_well(tmp_path: Path) -> None:
    def swallows(model_dir: str, requests: list) -> list:
        try:
            time.sleep(1e6)
        except BaseException:
            return []
        return []

    result = stopped(Function(swallows), 1.0, tmp_path)  # type: ignore[arg-type]
    assert (result.verdict, result.stopped_by, result.played) == ("undecided", BUDGET, [])


def test_what_no_signal_ends_is_left_behind_after_a_second() -> None:
    """In a process of its own, which ends with it."""
    script = """
import os, time
from refimpl.oracle.watchdog import Watchdog
def leave(watch):
    print(watch.why(), flush=True)
    os._exit(7)
with Watchdog(0.2, leave) as watch, watch.asking("asked batch 3"):
    while True:
        try:
            time.sleep(1e6)
        except BaseException:
            pass
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    said = "the budget of 0.2 s ended while the engine was asked batch 3: it hangs, or --budget is too small\n"
    assert (done.returncode, done.stdout, done.stderr) == (7, said, "")


def test_a_check_that_is_done_in_time_is_left_alone() -> None:
    with Watchdog(60.0) as watch, watch.asking("asked batch 0"):
        pass
    assert not watch.stopped_by and 0 < watch.remaining <= 60


@POSIX
def test_somebody_elses_alarm_is_still_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    try:
        with Watchdog(60.0):
            signal.raise_signal(signal.SIGALRM)
        signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert heard == [signal.SIGALRM] * 2


def test_a_base_that_was_stopped_before_anything_was_measured_takes_nothing_from_the_ones_before() -> None:
    testbed = small_testbed()
    before = Result(testbed, "pass", [], learn_thresholds([]), "float32", ["one"], power={"x": "detected"})
    now = Result(testbed, "undecided", [], learn_thresholds([]), "float32", ["two"], stopped_by=BUDGET)
    both = joined("base 1", before, now)
    assert (both.verdict, both.diagnostics, both.stopped_by) == ("undecided", ["one", "two"], BUDGET)
    assert both.power == before.power and both.thresholds is before.thresholds


def test_the_tokens_of_a_cause_are_of_the_cases_of_its_base() -> None:
    testbed, case = small_testbed(), Case("batch 0", (Run((EngineRequest((1, 2, 3), None),)),))
    cause = CauseReport((), 0, 1, 1, 1.0, 1.0, tokens=(Tokens("batch 0", 0, 0, None, 3, 0, 1, 2),))
    played = [PlayedCase(case, settings(testbed), [])]
    now = Result(testbed, "fail", played, learn_thresholds([]), "float32", [], Explanation(cause=cause))
    for _ in range(2):  # what is known by now may be asked for more than once
        joined("base 1", None, now)
        assert now.explanation.cause is not None
        assert {one.case for one in now.explanation.cause.tokens} == {one.case.name for one in now.played}
        assert now.played[0].case.name == "base 1, batch 0"


def test_below_the_noise_a_spent_budget_leaves_cases_out_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: all_mutants()[name] for name in ("rslora_ignored", "scale_is_one")}
    monkeypatch.setattr(below, "mutants_for", lambda names: few)
    campaign = Campaign(Ours, small_testbed(), replace(PLAN, cases=3), tmp_path)
    played = campaign.run().played
    adopt(small_testbed())
    context = replace(campaign._context(learn_thresholds([]), InProcess()), end=0.0)
    cases, candidates, late = candidates_below(context, played)
    assert cases == cases_below(played)[:1] and [one.mutant.name for one in candidates] == list(few)
    assert late == ["the budget ended with 1 of 3 cases looked at below the noise"]
