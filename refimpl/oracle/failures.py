"""The failures of a campaign, asked again: with quiet adapters, then less quiet ones, then as they came."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..engines.interface import Settings
from ..errors import AdapterWarning
from .cases.case import Case, Exchange, Run
from .cases.testbed import Testbed, settings
from .causes.asked import Asked, Place, is_single
from .causes.confined import Group, confined_testbed, groups
from .causes.facts import facts_of
from .causes.fewer import alone, in_other_shapes
from .causes.line import Line, Lines
from .causes.others import other_cases, other_testbed
from .causes.quiet import quiet_testbed
from .causes.suspect import Suspect, suspect_of
from .engine_driver import EngineDriver
from .noise.ensemble import Member
from .noise.measure import Errors, errors_again, measure
from .noise.verdict import Thresholds, judge
from .reports.result import PlayedCase
from .second_look import with_other_tokens

FACTORS = {"float32": (1 / 64, 1 / 8), "float64": (1 / 64, 1 / 8), "float16": (1 / 8, 1 / 2), "bfloat16": (1 / 4,)}
LOUD = 30.0  # noise units; a quiet request that is less wrong is asked less quietly
SUSPECTS = 4  # requests that a cause is looked for in; larger: slower
GRADED = 24  # requests, of those that failed and of those that did not; larger: slower
CUT = 2  # batches that are asked again with fewer requests; larger: slower, and conditions of batches are surer
RETOLD = 100  # and on: numbers of other tokens that nothing else here is asked with
STRIDE = 7  # of them; a batch has about so many
LEAST = 3  # tokens of a request that is asked with confined adapters: fewer do not tell its tokens apart
LENGTH = 8  # tokens of a request that is long enough to tell tokens apart, and short enough to be quick


Batch = list[tuple[Exchange, Errors | None, str]]  # its requests, their errors where they are known, their verdicts


@dataclass(frozen=True, eq=False)
class Failures:
    """An engine, still running, and what a campaign has learnt of it."""

    driver: EngineDriver
    testbed: Testbed
    members: tuple[Member, ...]
    thresholds: Thresholds
    played: Sequence[PlayedCase]

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
        """For each case the batches of its engine, and which of them is its first."""
        lines = Lines(self._is_new)
        return {
            one.case.name: lines.add(
                one.case, one.settings, self.driver.exchanges(one.case, one.settings), self.testbed
            )
            for one in self.played
        }

    @property
    def _is_new(self) -> bool:
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
        earlier: list[str | None] = []  # what was asked of one engine before
        for one in self.played:
            if all(len(some) >= GRADED for some in by_verdict.values()):
                break
            exchanges = self.driver.exchanges(one.case, one.settings)
            line, first = self._lines[one.case.name]
            for exchange, raw, verdict in self.as_they_came(one):
                if len(by_verdict.get(verdict, ())) < GRADED and verdict in by_verdict:
                    suspect = suspect_of(one.case, exchange, raw, self.testbed, earlier)
                    facts = facts_of(one.case, exchange, self.testbed, earlier)
                    place = one.case.name, exchange.run, exchange.index
                    by_verdict[verdict].append(
                        Asked(suspect, place, facts, verdict == "fail", line, first + exchange.run)
                    )
            earlier += [exchange.adapters[0][0] if exchange.adapters else None for exchange in exchanges]
        failed = by_verdict["fail"]
        return [one for i in range(STRIDE) for one in failed[i::STRIDE]] + by_verdict["pass"]

    @cached_property
    def asked_of_others(self) -> list[Asked]:
        """Requests of adapters that the campaign had not, on the same base, one batch after another; [] if the engine
        can load none."""
        if "load" not in self.driver.capabilities.operations:
            return []
        testbed = other_testbed(self.testbed, self.driver.capabilities, self.driver.work)
        cases = other_cases(testbed, self.driver.capabilities)
        return self._asked_again(testbed, cases, [None] * len(cases), settings(testbed))

    @cached_property
    def asked_with_fewer(self) -> list[Asked]:
        """Failed requests of a few batches, asked again alone; where that is right, beside fewer others and in other
        orders. [] if the engine would not forget what came before. Other tokens each time, as in `asked_quietly`."""
        if "load" not in self.driver.capabilities.operations:
            return []
        by_name = {one.case.name: one for one in self.played if one.case.stateless}
        failed = [one for one in self.asked_loudly if one.failed and one.place[0] in by_name]
        some = list({one.place[0]: one for one in reversed(failed)}.values())  # the first of each batch
        some.sort(key=lambda one: -len(by_name[one.place[0]].case.runs[0].requests))
        batches = [(by_name[one.place[0]], one.place[2]) for one in some[:CUT]]
        if not batches:
            return []
        started, vocab = batches[0][0].settings, self.testbed.model.config.vocab_size
        singles = [with_other_tokens(alone(one.case, at), vocab, RETOLD + n) for n, (one, at) in enumerate(batches)]
        requests = self._asked_again(self.testbed, singles, [0] * len(singles), started)
        right = {one.place[0] for one in requests if not one.failed}
        mixed = [batch for batch, single in zip(batches, singles, strict=True) if single.name in right]
        shapes = [shape for one, at in mixed for shape in in_other_shapes(one.case, at)]
        cases = [with_other_tokens(case, vocab, RETOLD + CUT + n) for n, (case, _) in enumerate(shapes)]
        return requests + self._asked_again(self.testbed, cases, [at for _, at in shapes], started)

    def _asked_again(
        self, testbed: Testbed, cases: Sequence[Case], places: Sequence[int | None], started: Settings
    ) -> list[Asked]:
        """Ask batches one after another of an engine that has forgotten what came before.

        places: of each batch the one request that is returned; None: all of them are."""
        requests, earlier, lines = list[Asked](), list[str | None](), Lines(self._is_new)
        for number, exchanges in enumerate(self.driver.run_on(testbed, cases, started)):
            case, here = cases[number], places[number]
            line, first = lines.add(case, started, exchanges, testbed)
            some = exchanges if here is None else [exchanges[here]]
            for exchange, raw, verdict in self.measured(case, some, testbed):
                if verdict in ("fail", "pass"):
                    suspect = suspect_of(case, exchange, raw, testbed, earlier)
                    facts = facts_of(case, exchange, testbed, earlier)
                    place = case.name, exchange.run, exchange.index
                    requests.append(Asked(suspect, place, facts, verdict == "fail", line, first, True))
            earlier += [exchange.adapters[0][0] if exchange.adapters else None for exchange in exchanges]
        return requests

    def asked_quietly(
        self, cases: Sequence[PlayedCase], but: frozenset[Place] = frozenset()
    ) -> Iterator[list[Suspect]]:
        """Yield some wrong requests of these cases, asked quietly; then less quietly; then as they came.

        but: requests that are left out. Other tokens each time: an engine that keeps keys and values would find
        those of the louder adapters."""
        loud = 0
        can_load = "load" in self.driver.capabilities.operations
        vocab = self.testbed.model.config.vocab_size
        for number, factor in enumerate(FACTORS.get(self.testbed.dtype, (1 / 4,)) if can_load else ()):
            quiet = quiet_testbed(self.testbed, factor, self.driver.work / "quiet")
            suspects: list[Suspect] = []
            for one in cases:
                case = with_other_tokens(one.case, vocab, number)
                (exchanges,) = self.driver.run_on(quiet, [case], one.settings)
                suspects += _suspects(quiet, case, self.measured(case, exchanges, quiet), one.case.name, but)
            suspects = chosen(suspects)
            if suspects and np.median([suspect.ratio for suspect in suspects]) > LOUD:
                yield suspects
                loud += 1
        if loud > 1:  # as they came they are less linear, and say nothing else
            return
        suspects = []
        for one in cases:
            suspects += _suspects(self.testbed, one.case, self.as_they_came(one), one.case.name, but)
        if suspects:
            yield chosen(suspects)

    def asked_confined(self) -> Iterator[tuple[Group, list[Asked]]]:
        """Yield groups of modules, and a request of each adapter that failed, asked again with all adapters confined to
        these: those that fail, and those that pass. Other tokens each time, as in `asked_quietly`."""
        loud = sorted((one for one in self.asked_loudly if _may_be_confined(one)), key=lambda one: _tokens(one.suspect))
        shortest = {one.suspect.key: one for one in reversed(loud)}
        if "load" not in self.driver.capabilities.operations or not shortest:
            return
        first, *_ = some = sorted(shortest.values(), key=lambda one: _tokens(one.suspect))
        started = next(one.settings for one in self.played if one.case.name == first.place[0])
        requests = [replace(one.suspect.exchange.request, adapter=one.suspect.key, arrival_step=0) for one in some]
        for number, (name, group) in enumerate(groups(self.testbed.model.config).items()):
            testbed = confined_testbed(self.testbed, name, group, self.driver.work / "confined")
            case = Case(f"confined to {name}", (Run(tuple(requests)),))
            case = with_other_tokens(case, self.testbed.model.config.vocab_size, len(FACTORS) + number)
            with warnings.catch_warnings():  # an engine that reads adapters as we do says of some that every B is 0
                warnings.simplefilter("ignore", AdapterWarning)
                (exchanges,) = self.driver.run_on(testbed, [case], started)
            measured = list(self.measured(case, exchanges, testbed))
            yield (
                group,
                [
                    Asked(suspect_of(case, one, raw, testbed), (case.name, 0, one.index), {}, verdict == "fail")
                    for one, raw, verdict in measured
                    if verdict in ("fail", "pass")
                ],
            )


def _may_be_confined(one: Asked) -> bool:
    return one.failed and one.is_single and one.suspect.key is not None and _tokens(one.suspect) >= LEAST


def _tokens(suspect: Suspect) -> int:
    return len(suspect.request.prompt_ids)


def _suspects(
    testbed: Testbed,
    case: Case,
    measured: Iterable[tuple[Exchange, Errors, str]],
    name: str,
    but: frozenset[Place],
) -> list[Suspect]:
    """Return the wrong ones of these requests. name: of the case as it came."""
    return [
        suspect_of(case, exchange, raw, testbed)
        for exchange, raw, verdict in measured
        if verdict == "fail" and is_single(exchange) and (name, exchange.run, exchange.index) not in but
    ]


def can_be_fitted(exchange: Exchange, raw: Errors, testbed: Testbed) -> bool:
    """Is it a request without DoRA, whose numbers the engine showed?"""
    plain = not any(testbed.adapters[key].use_dora for key, _ in exchange.adapters)
    return plain and raw.error.shape[1] > 1


def chosen(suspects: Sequence[Suspect]) -> list[Suspect]:
    """Return a few requests of different adapters, neither long nor too short to tell their tokens apart."""
    ranked = sorted(suspects, key=lambda one: abs(len(one.request.prompt_ids) - LENGTH))
    first = {suspect.key: suspect for suspect in reversed(ranked)}
    different = [suspect for suspect in ranked if first[suspect.key] is suspect]
    return (different + [suspect for suspect in ranked if suspect not in different])[:SUSPECTS]
