"""The cause of a campaign's failures: token by token where the engine shows a row for each, else by a fit.

    failed requests -> trace: which mistakes, at which tokens -> described: when, and of whose adapter -> a sentence

Of several causes that explain as much the one is said that takes the fewest bits (Rissanen 1978): of its mistakes, of
the rule for when each is made, of that rule's exceptions, and of every failure that it does not explain.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..training.trainable import without_gradients
from .asked_again import asked_of_others, asked_with_fewer
from .asked_quietly import asked_confined, asked_quietly
from .bugs.preconditions import spread
from .bugs.registry import all_bugs
from .cases.testbed import Testbed
from .causes.asked import Asked
from .causes.by_token import trace, traced_further
from .causes.described import Described, change_of, described
from .causes.follow import Followed
from .causes.left_in_slots import left_in_slots
from .causes.scheduled_rule import Scheduler
from .causes.statement import CauseReport, Change
from .causes.tokens_of_causes import tokens_of_cause
from .causes.traced import Request, Traced
from .diagnosis.clock import Clock
from .engine_driver import EngineDriver
from .failures import Failures
from .fitted_cause import fitted_cause, smallest_first
from .noise.ensemble import Member
from .noise.verdict import Thresholds
from .permuted_cause import permuted_cause
from .reports.result import PlayedCase

SECONDS = 80.0  # of processor time, after which nothing new is begun; larger: slower, and more is looked at
SCHEDULES = 24.0  # of the same, after which no other schedule of the engine is tried; larger: slower
LARGE = 1e4  # times as far off as a row fails from; of such requests
COARSE = 10.0  # times that much may be left: still a thousandth of what they were off
DESCRIBED = 4  # causes that explain as much, of which it is said when they hold; larger: slower
PASSED = 24  # requests that are right, in which it is seen that a mistake was not made; larger: slower
QUIET = 3  # cases that are asked quietly; larger: slower
BETWEEN = 10.0  # of the same, for what lies between requests; larger: slower
MOST = 0.8  # of the failed requests, which are enough not to look for what lies between them
LEAST = 0.2  # of the failed requests that a cause must explain; less: little is gained by saying it
UNEXPLAINED = 10.0  # bits of a failure that is left over; larger: longer causes are preferred to those that leave some
NAMED = 0.8  # of the failed requests that must be explained before it has the name of a known bug
TIE = 1.0  # bits; causes that differ by less are not told apart


@dataclass(frozen=True, eq=False)
class Said:
    """A cause with the words of each of its mistakes."""

    traced: Traced
    parts: list[Described]
    requests: dict[Request, Followed]  # that failed and are explained, and that are right
    bits: float


def why_not_fitted(testbed: Testbed) -> list[str]:
    """Return one line that says why no cause is looked for by a fit on this base; none where one is."""
    missing = ", ".join(without_gradients(testbed.model.config))
    return [f"no cause was fitted: that needs gradients, and here a base with {missing} has none"] if missing else []


def cause_of(
    driver: EngineDriver,
    testbed: Testbed,
    members: tuple[Member, ...],
    thresholds: Thresholds,
    played: Sequence[PlayedCase],
    clock: Clock | None = None,
) -> CauseReport | None:
    """Return the cause of these failures; None if none leaves noise.

    clock: when to stop looking, if not after SECONDS.     EngineError if the engine breaks off."""
    began, clock = time.monotonic(), clock or Clock(SECONDS)
    failures = Failures(driver, testbed, members, thresholds, played)
    loud = failures.asked_loudly
    limit = _limit(loud, thresholds)
    is_fitted = not why_not_fitted(testbed)  # or else neither are its adapters made quiet
    quietly = asked_quietly(failures, smallest_first(played)[:QUIET]) if is_fitted else ()
    traced = trace(loud, quietly, asked_confined(failures), limit, clock)[:DESCRIBED]
    traced = [one.as_far_as_visible(limit) for one in traced[:1]] + traced[1:]
    passed = [Request(one) for one in loud if not one.failed][:PASSED]
    if traced and _has_a_condition(traced[0], passed, limit) and not clock.is_late("other adapters"):
        others = [Request(one) for one in (*asked_of_others(failures), *asked_with_fewer(failures))]
        wrong = [one for one in others if one.as_it_came.failed]
        passed += spread([one for one in others if not one.as_it_came.failed], PASSED)
        traced = traced_further(traced, wrong, limit, clock)[:DESCRIBED]
    scheduler = Scheduler(Clock(min(SCHEDULES, clock.total / 3), clock.end))
    traced = (left_in_slots(traced, scheduler, limit) or traced)[:DESCRIBED] if traced else []
    failed = len(traced[0].followed) if traced else 0  # of a large base few are followed
    said = _all_said(traced, passed, failed, limit, scheduler)
    if said and len(said[0].traced.explained) >= MOST * failed:
        return _report(said, failed, testbed, time.monotonic() - began)
    if between := permuted_cause(failures, limit, Clock(BETWEEN, clock.end)):
        return between
    if said and len(said[0].traced.explained) >= max(min(2, failed), LEAST * failed):
        return _report(said, failed, testbed, time.monotonic() - began)
    return fitted_cause(failures, clock) if is_fitted else None


def _limit(loud: Sequence[Asked], thresholds: Thresholds) -> float:
    """Return what a row may be off, in noise units, where its mistake is known. Honest runs round honest numbers: those
    that a mistake has made larger are rounded more coarsely."""
    failed = [one.suspect.ratio for one in loud if one.failed]
    is_large = bool(failed) and float(np.median(failed)) > LARGE * thresholds.ratio
    return thresholds.ratio * (COARSE if is_large else 1.0)


def _has_a_condition(traced: Traced, passed: Sequence[Request], limit: float) -> bool:
    """Is there a token in which one of its mistakes would have shown, and was not made?"""
    right = {request: request.follow([traced.cause], limit)[0] for request in passed}
    every = {request: traced.followed[request] for request in traced.explained}
    every |= {request: one for request, one in right.items() if one.dead is None}
    return any(  # a request that has no such source says nothing of when it is made
        mistake.family in request.families and bool((one.present(i) == 0).any())
        for request, one in every.items()
        for i, mistake in enumerate(traced.cause)
    )


def _all_said(
    traced: Sequence[Traced], passed: Sequence[Request], failed: int, limit: float, scheduler: Scheduler
) -> list[Said]:
    """Say each of these causes, that of the fewest bits first; but those that take more without any rule."""
    said = list[Said]()
    for one in traced:
        least = sum(mistake.cost for mistake in one.cause) + UNEXPLAINED * (failed - len(one.explained))
        most = said[0].bits + TIE - least if said else math.inf  # bits that its rules may take
        if most >= 0:
            said = sorted([*said, _said(one, passed, failed, limit, scheduler, most)], key=lambda one: one.bits)
    return said


def _said(
    traced: Traced, passed: Sequence[Request], failed: int, limit: float, scheduler: Scheduler, most: float
) -> Said:
    traced = traced.as_far_as_visible(limit)
    right = {request: request.follow([traced.cause], limit)[0] for request in passed}
    right = {request: one for request, one in right.items() if one.dead is None}
    parts = described(traced, right, scheduler, most)
    bits = sum(part.bits for part in parts) + UNEXPLAINED * (failed - len(traced.explained))
    return Said(traced, parts, {request: traced.followed[request] for request in traced.explained} | right, bits)


def _report(said: Sequence[Said], failed: int, testbed: Testbed, seconds: float) -> CauseReport:
    """Say the first of these causes, and with what others it could be confused."""
    links = {name: bug.links for name, bug in all_bugs(testbed).items()}
    best = said[0]
    changes = [
        tuple(change_of(part, one.requests, i, links) for i, part in enumerate(one.parts))
        for one in said
        if one.bits <= best.bits + TIE
    ]
    sources = {_sources(changes[0])}  # of the same sources one is enough
    also = []
    for some in changes[1:]:
        of_these = _sources(some)
        if (
            of_these not in sources
            and not any(change.bug for change in some)
            and _in_full(some) != _in_full(changes[0])
        ):
            sources.add(of_these)
            also.append(_in_full(some))
    explained = best.traced.explained
    if len(explained) < NAMED * failed:  # another bug may do the same here, and more elsewhere
        changes[0] = tuple(replace(change, bug="", links=()) for change in changes[0])
    exceptions = sum(part.rule.wrong for part in best.parts if part.rule.holds)
    residual = max(best.traced.followed[request].worst for request in explained)
    afterwards = sum(request.as_it_came.afterwards for request in explained)
    rounds = any(request.is_rounded(best.traced.cause) for request in explained)
    return CauseReport(
        changes[0],
        exceptions,
        len(explained),
        failed,
        residual,
        seconds,
        tuple(also),
        rounds,
        afterwards,
        tokens_of_cause(best.traced),
    )


def _in_full(changes: Sequence[Change]) -> str:
    return "; and ".join(change.in_full for change in changes)


def _sources(changes: Sequence[Change]) -> frozenset[str]:
    """Return what is mixed up. To a request of the base it is the same whether that is added or stands instead."""
    return frozenset(change.source.replace("added: ", "instead: ") for change in changes)
