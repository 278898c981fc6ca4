"""What every part of an explanation needs: the engine, still running, and what the campaign has learnt of it."""

import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from ..engines.interface import Settings
from .cases.case import Case, Exchange, tokens_exist
from .cases.testbed import Testbed
from .engine_driver import EngineDriver
from .noise.ensemble import Member
from .noise.measure import Sample, measure
from .noise.verdict import Thresholds, Verdict, judge
from .observer import Observer
from .reports.result import CampaignSettings, PlayedCase


@dataclass(frozen=True, eq=False)
class Context:
    """What every part of an explanation needs: the engine, still running, and what the campaign has learnt of it."""

    driver: EngineDriver
    testbed: Testbed
    members: tuple[Member, ...]
    thresholds: Thresholds
    workers: Executor
    settings: CampaignSettings
    observer: Observer
    end: float = math.inf  # of the budget, by time.monotonic()
    repeatable: bool = True  # were batches that were asked twice answered alike?

    def sample(self, played: PlayedCase) -> Sample:
        """Return a case with its errors, and with what the campaign has projected on them."""
        return replace(self.driver.sample(played.case, played.settings, self.members), terms=played.terms)

    def failures(
        self, case: Case, settings: Settings, ask: Callable[[], list[Exchange]] | None = None
    ) -> list[tuple[Exchange, Verdict]]:
        """Ask the engine again; return the requests that it gets wrong. With tokens that nobody has, it is no case.

        ask: how, if not by asking the engine that is running."""
        if not tokens_exist(case, self.testbed):
            return []
        exchanges = self.driver.run(case, settings) if ask is None else ask()
        ratios, _ = measure(case, exchanges, self.testbed, self.members)
        counted = [exchange for exchange in exchanges if exchange.request.cancel_after is None]
        verdicts = [judge(one, self.thresholds) for one in ratios]
        return [
            (exchange, verdict)
            for exchange, verdict in zip(counted, verdicts, strict=True)
            if verdict.verdict == "fail"
        ]
