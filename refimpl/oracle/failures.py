"""What a campaign asked of an engine, failed or passed, request by request: for the causes, and for asked_again.py and
asked_quietly.py, which ask more of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from .cases.case import Case, Exchange
from .cases.testbed import Testbed
from .causes.asked import Asked
from .causes.facts import facts_of
from .causes.line import Line, Lines, Reports
from .causes.suspect import suspect_of
from .engine_driver import EngineDriver
from .noise.ensemble import Member
from .noise.measure import Errors, errors_again, measure
from .noise.verdict import Thresholds, judge
from .repeatable import SECOND
from .reports.result import PlayedCase

GRADED = 24  # requests, of those that failed and of those that did not; larger: slower
STRIDE = 7  # of them; a batch has about so many

Batch = list[tuple[Exchange, Errors | None, str]]  # its requests, their errors where they are known, their verdicts


@dataclass(frozen=True, eq=False)
class Failures:
    """An engine, still running, and what a campaign has learnt of it."""

    driver: EngineDriver
    testbed: Testbed
    members: tuple[Member, ...]
    thresholds: Thresholds
    played: Sequence[PlayedCase]
    reports: Reports = field(default_factory=Reports)

    def measured(
        self, case: Case, exchanges: Sequence[Exchange], testbed: Testbed
    ) -> Iterator[tuple[Exchange, Errors, str]]:
        """Yield the requests of a case that can be fitted, with their errors and their verdicts."""
        ratios, raws = measure(case, exchanges, testbed, self.members)
        counted = [exchange for exchange in exchanges if exchange.request.cancel_after is None]
        for exchange, ratio, raw in zip(counted, ratios, raws, strict=True):
            if raw is not None and can_be_fitted(exchange, raw, testbed):
                yield exchange, raw, judge(ratio, self.thresholds).verdict

    def as_they_came(self, one: PlayedCase) -> Iterator[tuple[Exchange, Errors, str]]:
        """Yield the requests of a played case that can be fitted, with their errors and their verdicts."""
        exchanges = self.driver.exchanges(one.case, one.settings)
        counted = [exchange for exchange in exchanges if exchange.request.cancel_after is None]
        raws = errors_again(counted, one.ratios, self.testbed)
        for exchange, raw, verdict in zip(counted, raws, one.verdicts, strict=True):
            if raw is not None and can_be_fitted(exchange, raw, self.testbed):
                yield exchange, raw, verdict.verdict

    @cached_property
    def _lines(self) -> dict[str, tuple[Line, int]]:
        """For each case the batches of its engine, and which of them is its first, of those that its answers are of."""
        lines, places = Lines(self.is_new, self.reports), dict[str, tuple[Line, int]]()
        for one in self.played:
            answers = self.driver.first_answers(one.case, one.settings)
            places[one.case.name] = lines.add(one.case, one.settings, answers, self.testbed)
        twice = sorted((one for one in self.played if one.asked_twice), key=lambda one: one.asked_twice)
        for one in twice:
            place = lines.add(
                one.case, one.settings, self.driver.exchanges(one.case, one.settings, SECOND), self.testbed
            )
            if one.is_second:
                places[one.case.name] = place
        return places

    @property
    def is_new(self) -> bool:
        """Is the engine new for each batch?"""
        return bool(getattr(self.driver.engine, "new_for_each_batch", False))

    def batches(self, one: PlayedCase) -> Iterator[tuple[Line, int, Batch]]:
        """Yield the batches of a played case whose requests came at once and ran to their ends, each with those of its
        engine, and which of them it is."""
        line, first = self._lines[one.case.name]
        exchanges = self.driver.exchanges(one.case, one.settings)
        counted = [exchange for exchange in exchanges if exchange.request.cancel_after is None]
        raws = errors_again(counted, one.ratios, self.testbed)
        rows = list(zip(counted, raws, (verdict.verdict for verdict in one.verdicts), strict=True))
        for number, run in enumerate(one.case.runs):
            some = [row for row in rows if row[0].run == number]
            at_once = all(request.arrival_step == run.requests[0].arrival_step for request in run.requests)
            if at_once and len(some) == len(run.requests) > 1:
                yield line, first + number, some

    @cached_property
    def asked_loudly(self) -> list[Asked]:
        """The requests as they came: those that failed, from all over the campaign, then as many that passed."""
        by_verdict: dict[str, list[Asked]] = {"fail": [], "pass": []}
        for one in self.played:
            if all(len(some) >= GRADED for some in by_verdict.values()):
                break
            line, first = self._lines[one.case.name]
            earlier = line.used_before(first)
            for exchange, raw, verdict in self.as_they_came(one):
                if len(by_verdict.get(verdict, ())) < GRADED and verdict in by_verdict:
                    occupants = line.reported_occupants(first + exchange.run, exchange.index)
                    suspect = suspect_of(one.case, exchange, raw, self.testbed, earlier, occupants)
                    facts = facts_of(one.case, exchange, self.testbed, earlier)
                    place = one.case.name, exchange.run, exchange.index
                    by_verdict[verdict].append(
                        Asked(suspect, place, facts, verdict == "fail", line, first + exchange.run)
                    )
        failed = by_verdict["fail"]
        return [one for i in range(STRIDE) for one in failed[i::STRIDE]] + by_verdict["pass"]


def can_be_fitted(exchange: Exchange, raw: Errors, testbed: Testbed) -> bool:
    """Is it a request without DoRA, whose numbers the engine showed?"""
    plain = not any(testbed.adapters[key].use_dora for key, _ in exchange.adapters)
    return plain and raw.error.shape[1] > 1
