"""The cause of a campaign's failures: asked quietly, fitted, and then held against every failure as it came.

    failed cases, asked again with quiet adapters -> find -> does it leave noise in the failures themselves? in which of
    them, and what do they have in common? -> a sentence

Nothing is said of what explains less than half of the failed requests, or a single one of several, or leaves more than
noise.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..training.trainable import without_gradients
from .bugs.registry import all_bugs
from .cases.case import Case, Exchange
from .cases.testbed import Testbed
from .causes.condition import condition, facts_of
from .causes.exact import ExactFit, at, fit
from .causes.find import Cause, find
from .causes.pursuit import Atom
from .causes.quiet import quiet_testbed
from .causes.relations import relations
from .causes.statement import CauseReport, Change, in_words
from .causes.suspect import Suspect, worst_ratio
from .engine_driver import EngineDriver
from .noise.ensemble import Member
from .noise.measure import Errors, measure
from .noise.verdict import Thresholds, judge
from .reports.result import PlayedCase

FACTORS = {"float32": (1 / 64, 1 / 8), "float64": (1 / 64, 1 / 8), "float16": (1 / 8, 1 / 2), "bfloat16": (1 / 4,)}
LOUD = 30.0  # noise units; a quiet request that is less wrong is asked less quietly
SUSPECTS = 4  # requests that a cause is looked for in; larger: slower
CASES = 3  # that are asked quietly; larger: slower
GRADED = 60  # requests, of those that failed and of those that did not; larger: slower
SHARE = 0.5  # of the failed requests that a cause must explain; less: it may be a coincidence, or a part of the bug
EXCEPTIONS = 0.2  # of the explained requests that a condition may have; more: it is a coincidence more often
LENGTH = 8  # tokens of a request that is long enough to tell tokens apart, and short enough to be quick


@dataclass(frozen=True, eq=False)
class Graded:
    """One request of the campaign: does the cause explain it?"""

    case: Case
    exchange: Exchange
    failed: bool
    fit: ExactFit
    explained: bool
    visible: bool  # would the cause show in it?


def why_not_fitted(testbed: Testbed) -> list[str]:
    """Return one line that says why no cause is looked for on this base; none where one is."""
    missing = ", ".join(without_gradients(testbed.model.config))
    return [f"no cause was fitted: that needs gradients, and here a base with {missing} has none"] if missing else []


def cause_of(
    driver: EngineDriver,
    testbed: Testbed,
    members: tuple[Member, ...],
    thresholds: Thresholds,
    played: Sequence[PlayedCase],
) -> CauseReport | None:
    """Return the cause of these failures; None if none leaves noise, and for a base that has no gradients here.

    EngineError if the engine breaks off."""
    if why_not_fitted(testbed):
        return None
    began = time.monotonic()
    failed = sorted(
        (one for one in played if one.has_wrong_numbers), key=lambda one: (not one.case.stateless, _size(one))
    )
    for suspects in _asked_quietly(driver, testbed, members, thresholds, failed[:CASES]):
        cause = find(suspects, thresholds.ratio)
        if cause is None:
            continue
        graded = list(_graded(driver, testbed, members, thresholds, played, cause))
        report = _report(cause, suspects, graded, testbed, time.monotonic() - began)
        if report is not None:
            return report
    return None


def _asked_quietly(
    driver: EngineDriver,
    testbed: Testbed,
    members: tuple[Member, ...],
    thresholds: Thresholds,
    failed: Sequence[PlayedCase],
) -> Iterator[list[Suspect]]:
    """Yield wrong requests of these cases, asked quietly; then less quietly; then as they came."""
    factors = FACTORS.get(testbed.dtype, (1 / 4,)) if "load" in driver.capabilities.operations else ()
    for factor in factors:
        quiet = quiet_testbed(testbed, factor, driver.work / "quiet")
        responses = [(one.case, driver.run_on(quiet, one.case, one.settings)) for one in failed]
        suspects = chosen(_suspects(responses, quiet, members, thresholds))
        if suspects and np.median([suspect.ratio for suspect in suspects]) > LOUD:
            yield suspects
    responses = [(one.case, driver.exchanges(one.case, one.settings)) for one in failed]
    if suspects := chosen(_suspects(responses, testbed, members, thresholds)):
        yield suspects


def _suspects(
    responses: Sequence[tuple[Case, list[Exchange]]],
    testbed: Testbed,
    members: tuple[Member, ...],
    thresholds: Thresholds,
) -> Iterator[Suspect]:
    for case, exchanges in responses:
        ratios, raws = measure(case, exchanges, testbed, members)
        counted = [exchange for exchange in exchanges if exchange.request.cancel_after is None]
        for exchange, ratio, raw in zip(counted, ratios, raws, strict=True):
            if raw is not None and can_be_fitted(exchange, raw, testbed) and judge(ratio, thresholds).verdict == "fail":
                yield Suspect(exchange, raw, testbed, relations(case, exchange, testbed))


def can_be_fitted(exchange: Exchange, raw: Errors, testbed: Testbed) -> bool:
    """Is it a request of at most one adapter, without DoRA, whose numbers the engine showed?"""
    plain = not exchange.adapters or not testbed.adapters[exchange.adapters[0][0]].use_dora
    single = len(exchange.adapters) <= 1 and not exchange.request.adapter_weights
    return plain and single and raw.error.shape[1] > 1


def chosen(suspects: Iterable[Suspect]) -> list[Suspect]:
    """Return a few requests of different adapters, neither long nor too short to tell their tokens apart."""
    ranked = sorted(suspects, key=lambda one: abs(len(one.request.prompt_ids) - LENGTH))
    first = {suspect.key: suspect for suspect in reversed(ranked)}
    different = [suspect for suspect in ranked if first[suspect.key] is suspect]
    return (different + [suspect for suspect in ranked if suspect not in different])[:SUSPECTS]


# The failures as they came.


def _graded(
    driver: EngineDriver,
    testbed: Testbed,
    members: tuple[Member, ...],
    thresholds: Thresholds,
    played: Sequence[PlayedCase],
    cause: Cause,
) -> Iterator[Graded]:
    """Yield every request that failed, and as many that did not, with what the cause leaves of it."""
    count = {"fail": 0, "pass": 0}
    common = cause.common
    for one in played:
        if all(n >= GRADED for n in count.values()):
            return
        exchanges = driver.exchanges(one.case, one.settings)
        ratios, raws = measure(one.case, exchanges, testbed, members)
        counted = [exchange for exchange in exchanges if exchange.request.cancel_after is None]
        for exchange, ratio, raw in zip(counted, ratios, raws, strict=True):
            verdict = judge(ratio, thresholds).verdict
            if raw is None or verdict not in count or count[verdict] >= GRADED:
                continue
            if not can_be_fitted(exchange, raw, testbed):
                continue
            count[verdict] += 1
            suspect = Suspect(exchange, raw, testbed, relations(one.case, exchange, testbed))
            yield _grade(suspect, one.case, verdict == "fail", cause.atoms, common, thresholds.ratio)


def _grade(
    suspect: Suspect,
    case: Case,
    failed: bool,
    atoms: Sequence[Atom],
    common: Sequence[float | None],
    limit: float,
) -> Graded:
    start = np.array([1.0 if value is None else value for value in common])
    result = at(suspect, atoms, start)
    if failed and not result.worst < limit and any(value is None for value in common):
        result = fit(suspect, atoms, start)
    effect = result.residual - suspect.raw.error
    visible = worst_ratio(effect, suspect.raw) > 3 * limit
    return Graded(case, suspect.exchange, failed, result, result.worst < limit and visible, visible)


def _report(
    cause: Cause, suspects: Sequence[Suspect], graded: Sequence[Graded], testbed: Testbed, seconds: float
) -> CauseReport | None:
    failed = [one for one in graded if one.failed]
    explained = [one for one in failed if one.explained]
    if not explained or len(explained) < max(SHARE * len(failed), min(2, len(failed))):
        return None
    facts = {id(one): facts_of(one.case, one.exchange, testbed) for one in graded}
    silent = [one for one in graded if not one.failed and one.visible]
    rule = condition([facts[id(one)] for one in explained], [facts[id(one)] for one in silent])
    # A rule with that many exceptions is none; then it is only said how often the cause shows.
    holds = rule.wrong <= EXCEPTIONS * len(explained)
    where = (
        rule.words if holds else f"in {len(explained)} of {len(explained) + len(silent)} requests that would show it"
    )
    changes = tuple(_change(i, cause, suspects, explained, testbed) for i in range(len(cause.atoms)))
    residual = max(one.fit.worst for one in explained)
    return CauseReport(changes, where, rule.wrong if holds else 0, len(explained), len(failed), residual, seconds)


def _change(i: int, cause: Cause, suspects: Sequence[Suspect], explained: Sequence[Graded], testbed: Testbed) -> Change:
    atom, coefficient = cause.atoms[i], cause.common[i]
    source = next(one.sources[atom.source] for one in suspects if atom.source in one.sources)
    by_adapter: dict[str, float] = {}
    for one in explained:
        by_adapter.setdefault(one.exchange.adapter or "the base", float(one.fit.coefficients[i]))
    pairs = tuple(sorted(by_adapter.items())) if coefficient is None else ()
    bug = all_bugs(testbed).get(atom.source)
    named = bug if bug is not None and coefficient == 1 and not atom.modules and not atom.tokens else None
    return Change(
        in_words(source.words, source.kind, coefficient, pairs),
        atom.source,
        atom.modules,
        atom.tokens,
        coefficient,
        pairs,
        "" if named is None else named.name,
        () if named is None else named.links,
    )


def _size(played: PlayedCase) -> int:
    return sum(len(request.prompt_ids) for run in played.case.runs for request in run.requests)
