"""Campaigns over an engine that breaks off, or answers errors: no verdict, or a failure that quotes them."""

from pathlib import Path

import pytest
from support.campaign import named
from support.testbed import small_testbed

from refimpl.engines.interface import EngineError, EngineResponse
from refimpl.engines.ours import Ours
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.reports.result import CampaignSettings
from refimpl.oracle.reports.summary import summary

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


def test_an_engine_that_breaks_off_is_no_verdict(tmp_path: Path) -> None:
    class Gone(Ours):
        def run(self, requests, forced=None):
            raise EngineError("the server is gone")

    with pytest.raises(EngineError, match="gone"):
        Campaign(Gone, small_testbed(), CampaignSettings(2, 0), tmp_path).run()


def test_an_engine_that_answers_errors_fails(tmp_path: Path) -> None:
    class Refusing(Ours):
        def run(self, requests, forced=None):
            return [EngineResponse(error="500 Internal Server Error") for _ in requests]

    result = Campaign(Refusing, small_testbed(), CampaignSettings(2, 0), tmp_path).run()
    assert result.verdict == "fail"
    assert result.explanation.symptoms[0].what == "no answer: 500 Internal Server Error"
    assert result.diagnostics == [
        "every answer to the first case was an error: no other was asked",
        "no answer could be read; the engine said: 500 Internal Server Error",
    ]
    assert len(result.played) == 1
    assert summary(result, "refusing")["worst_noise_ratio"] is None  # JSON has no infinity


def test_an_engine_most_of_whose_answers_are_errors_is_explained(tmp_path: Path) -> None:
    """Four of its ten batches have numbers, which are wrong, and none of them is among the six that are spread over all
    of the failed ones; afterwards it answers nothing but errors."""

    class Failing(Ours):
        batches = 0

        def run(self, requests, forced=None):
            type(self).batches += 1
            if type(self).batches in (1, 5, 7, 9):
                return super().run(requests, forced)
            return [EngineResponse(error="503 Service Unavailable") for _ in requests]

    make = all_mutants()["adapters_ignored"].make
    result = Campaign(lambda: Failing(make), small_testbed(), CampaignSettings(10, 0, below=False), tmp_path).run()
    assert result.verdict == "fail"
    (line,) = [line for line in result.diagnostics if "could be read" in line]
    assert "adapters_ignored" in named(result)
    assert line.startswith("only ") and line.endswith("the engine said: 503 Service Unavailable")
