"""An engine that answers the same question in two ways is told so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from support.testbed import small_testbed

from refimpl.engines.interface import EngineResponse
from refimpl.engines.ours import Ours
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.failures import Failures
from refimpl.oracle.noise.measure import ErrorRatios
from refimpl.oracle.repeatable import distance
from refimpl.oracle.reports.result import CampaignSettings


def diagnostics(engine: type[Ours], folder: Path) -> list[str]:
    return Campaign(engine, small_testbed(), CampaignSettings(2, 0, below=False), folder).run().diagnostics


class Noisy(Ours):
    """Another answer each time, as with dropout."""

    calls = 0

    def run(self, requests: Any, forced: Any = None) -> list[EngineResponse]:
        type(self).calls += 1
        responses = super().run(requests, forced)
        factor = 1 + 0.01 * np.random.default_rng(self.calls).standard_normal()
        return [
            EngineResponse(one.token_ids, one.first_position, logits=one.logits * factor, error=one.error)
            for one in responses
            if one.logits is not None
        ]


def test_an_engine_that_drops_something_each_time_is_not_repeatable(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("refimpl.oracle.explain.search", lambda work: [])
    (line,) = [line for line in diagnostics(Noisy, tmp_path) if line.startswith("not repeatable")]
    assert "batch 0 was asked twice, and the answers are" in line and "x noise apart" in line


class Forgetful(Ours):
    """Right at first, wrong when it is asked the same again, as if a cache gave back what another one left there."""

    def run(self, requests: Any, forced: Any = None) -> list[EngineResponse]:
        seen = self.__dict__.setdefault("seen", set())
        responses = super().run(requests, forced)
        if tuple(requests) in seen:
            responses = [replace(one, logits=one.logits * 1.01) for one in responses]  # type: ignore[operator]
        seen.add(tuple(requests))
        return responses


def test_an_engine_that_is_right_only_once_fails(tmp_path: Path) -> None:
    plan = CampaignSettings(2, 0, below=False, name_bug=False)
    result = Campaign(Forgetful, small_testbed(), plan, tmp_path).run()
    assert result.verdict == "fail"
    assert any("asked twice" in line and "(2 of the 2 batches that were)" in line for line in result.diagnostics)
    assert any("only after what was asked before" in line for line in result.diagnostics)


class Going(Forgetful):
    """The same, and it goes on from batch to batch."""

    new_for_each_batch = False


def test_what_was_asked_twice_stands_where_it_was_asked_then(tmp_path: Path) -> None:
    plan, testbed = CampaignSettings(2, 0, below=False, name_bug=False), small_testbed()
    campaign = Campaign(Going, testbed, plan, tmp_path)
    result = campaign.run()
    assert [one.is_second for one in result.played] == [True, True]
    failures = Failures(campaign.driver, testbed, (), result.thresholds, result.played)
    asked = {(one.place[0], one.number) for one in failures.asked_loudly}
    assert asked == {("batch 0", 2), ("batch 1", 3)}  # numbers 0 and 1 are the first answers
    (line,) = {one.line for one in failures.asked_loudly}
    assert line is not None and len(line.batches) == 4
    assert len(line.used_before(2)) == sum(len(one.case.runs[0].requests) for one in result.played)


def test_an_honest_engine_is(tmp_path: Path) -> None:
    assert diagnostics(Ours, tmp_path) == []


def test_the_distance_of_two_answers() -> None:
    unit = np.array([0.5, 0.25])
    ratios = ErrorRatios("x", 0, 0, None, 0, unit, np.zeros((0, 2)), unit, 0.0, "")
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    response = EngineResponse((1,), 0, logits=rows)
    assert distance(response, response, ratios) == 0
    assert distance(response, EngineResponse((1,), 0, logits=rows + np.array([[9, 9], [1, -1]])), ratios) == 4
    assert distance(response, EngineResponse(error="gone"), ratios) == np.inf
    assert distance(EngineResponse((1,)), EngineResponse((2,)), ratios) == np.inf
    assert distance(EngineResponse((1,)), EngineResponse((1,)), ratios) == 0
    assert distance(EngineResponse(error="gone"), EngineResponse(error="gone"), ratios) == 0
