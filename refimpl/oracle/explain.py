"""What is behind a failure: the smallest case, the place, the bug, and the symptoms where no bug fits.

The engine is asked again for all of it, the mutants are rerun by the workers. Each part is a function that returns; the
Explanation is put together in explain().
"""

import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

from ..arrays import ceil_div
from ..engines.interface import EngineError, Settings
from .bugs import Mutant
from .bugs.preconditions import is_applicable, spread
from .bugs.registry import find_bug
from .cases.case import Case, Exchange, Load, Run, tokens_exist
from .cases.shrink import Budget, shrink
from .cases.testbed import Testbed
from .cases.words import in_words
from .cause import cause_of, why_not_fitted
from .causes.statement import CauseReport
from .diagnosis.candidate import Candidate, evaluate
from .diagnosis.diagnose import Finding, diagnose
from .diagnosis.localise import Location, by_ablation, first_off, intermediates
from .diagnosis.search import Search, search
from .diagnosis.symptoms import Symptom, company, symptoms_of, tally
from .diagnosis.workers import project_bugs
from .engine_driver import EngineDriver
from .noise.ensemble import Member
from .noise.measure import Sample, measure
from .noise.verdict import Thresholds, Verdict, judge
from .observer import Observer
from .reports.pictures import Picture, picture
from .reports.result import CampaignSettings, Explanation, PlayedCase, unreadable

CLOSELY = 6  # failed cases that a bug is looked for in; larger: slower, and bugs that show rarely are named more often
PASSED = 2  # cases that passed, beside them: a bug must do nothing there; larger: slower
ELSEWHERE = 12  # cases in which mutants that do the same may differ; larger: slower where they never do
SHRINKING = Budget(calls=200, seconds=45.0)


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

    def sample(self, played: PlayedCase) -> Sample:
        """Return a case with its errors, and with what the campaign has projected on them."""
        return replace(self.driver.sample(played.case, played.settings, self.members), terms=played.terms)

    def failures(self, case: Case, settings: Settings) -> list[tuple[Exchange, Verdict]]:
        """Ask the engine again; return the requests that it gets wrong. With tokens that nobody has, it is no case."""
        if not tokens_exist(case, self.testbed):
            return []
        exchanges = self.driver.run(case, settings)
        ratios, _ = measure(case, exchanges, self.testbed, self.members)
        counted = [exchange for exchange in exchanges if exchange.request.cancel_after is None]
        verdicts = [judge(one, self.thresholds) for one in ratios]
        return [
            (exchange, verdict)
            for exchange, verdict in zip(counted, verdicts, strict=True)
            if verdict.verdict == "fail"
        ]


def explain(context: Context, played: Sequence[PlayedCase]) -> Explanation:
    """Return everything that can be said of a campaign in which cases failed."""
    began = time.monotonic()
    failed = [one for one in played if one.verdict == "fail"]
    readable = any(one.has_wrong_numbers for one in failed)
    shortest = min(failed, key=_size)
    smallest, diagnostics = _smaller(context, shortest)
    words, symptoms = ("", []) if smallest is None else _said_of_smallest(context, smallest, shortest.settings)
    close = _close_cases(played, failed)
    samples = [context.sample(one) for one in close]
    with_rows = [sample for sample in samples if any(raw is not None for raw in sample.raws)]
    small = _smallest_sample(context, smallest, shortest.settings) if smallest is not None and readable else None
    symptoms += _symptoms(context, close, samples)
    locations, divergence, more = _located(context, failed) if readable else ([], None, [])
    search_bugs = readable and context.settings.name_bug
    cause, broken_off = _cause(context, played) if search_bugs else (None, [])
    first = small or with_rows[0] if search_bugs else None
    candidates = [] if first is None else _candidates(context, first, with_rows, divergence)
    findings = _findings(context, with_rows, candidates, played)
    return Explanation(
        findings,
        symptoms,
        divergence,
        locations,
        _picture(context, with_rows, findings),
        smallest,
        None if smallest is None else shortest.settings,
        diagnostics + unreadable(played) + more + broken_off,
        time.monotonic() - began,
        words,
        cause,
    )


def explain_below(
    context: Context, played: Sequence[PlayedCase], cases: Sequence[PlayedCase], candidates: Sequence[Candidate]
) -> Explanation:
    """Return which bug it is that no row shows. cases: those in which the candidates were looked for."""
    began = time.monotonic()
    samples = [context.sample(one) for one in cases]
    findings = _findings(context, samples, candidates, played)
    return Explanation(findings, picture=_picture(context, samples, findings), seconds=time.monotonic() - began)


def _close_cases(played: Sequence[PlayedCase], failed: Sequence[PlayedCase]) -> list[PlayedCase]:
    """Return the cases in which a bug is looked for: failed ones from all over the campaign, few sequences among them
    because they are long, and two that passed.

    An engine that mostly answers errors may have no number in any of these; then failures with numbers are added."""
    batches = [one for one in failed if one.case.stateless]
    histories = sorted((one for one in failed if not one.case.stateless), key=_size)
    passed = [one for one in played if one.verdict == "pass" and one.case.stateless]
    close = spread(batches, CLOSELY) + histories[: 1 if batches else CLOSELY // 2] + spread(passed, PASSED)
    if not any(one.has_wrong_numbers for one in close):
        close += spread([one for one in failed if one.has_wrong_numbers], CLOSELY)
    return close


def _symptoms(context: Context, close: Sequence[PlayedCase], samples: Sequence[Sample]) -> list[Symptom]:
    lines: list[str] = []
    for one, sample in zip(close, samples, strict=True):
        lines += symptoms_of(sample, one.verdicts, one.ratios, context.testbed, context.thresholds)
    return tally(lines, sum(verdict.verdict == "fail" for one in close for verdict in one.verdicts))


def _findings(
    context: Context, samples: Sequence[Sample], candidates: Sequence[Candidate], played: Sequence[PlayedCase]
) -> list[Finding]:
    if not candidates:
        return []
    elsewhere = [(one.case, context.testbed) for one in played if one.case.stateless][:ELSEWHERE]
    return diagnose(samples, context.testbed, candidates, context.members, context.thresholds, elsewhere)


def _picture(context: Context, samples: Sequence[Sample], findings: Sequence[Finding]) -> Picture | None:
    bug, only = (findings[0].mutant, findings[0].only) if findings else (None, "")
    return picture(samples, context.testbed, context.thresholds, bug, only)


# The smallest failure.


def _smaller(context: Context, failed: PlayedCase) -> tuple[Case | None, list[str]]:
    """Return the failed case, made small; None, and why, if the engine broke off."""
    try:
        return shrink(failed.case, lambda case: bool(context.failures(case, failed.settings)), SHRINKING), []
    except EngineError as error:
        return None, [f"while the failure was made smaller: {error}"]


def _said_of_smallest(context: Context, smallest: Case, settings: Settings) -> tuple[str, list[Symptom]]:
    """Return the smallest failure in words, and what it takes for it to go wrong, if its request is answered well
    alone."""
    again = context.failures(smallest, settings)
    words = in_words(smallest, [(exchange.run, exchange.index) for exchange, _ in again])
    context.observer.shrink(words)
    if not again or not _is_right_alone(context, again[0][0], settings):
        return words, []
    return words, [Symptom(line) for line in company(smallest, again[0][0])]


def _is_right_alone(context: Context, exchange: Exchange, settings: Settings) -> bool:
    """Is the same request answered well by an engine that has done nothing else?"""
    request = exchange.request
    names = [name for name, _ in request.adapter_weights] or ([request.adapter] if request.adapter else [])
    loads = [Load(name, key) for name, (key, _) in zip(names, exchange.adapters, strict=True)]
    alone = Case("alone", (*loads, Run((replace(request, arrival_step=0),))), stateless=False)
    return not context.failures(alone, settings)


def _smallest_sample(context: Context, smallest: Case, settings: Settings) -> Sample | None:
    """Return the smallest failure with its errors; None if it has no number."""
    exchanges = context.driver.run(smallest, settings)
    raws = measure(smallest, exchanges, context.testbed, context.members)[1]
    return Sample(smallest, exchanges, raws, settings) if any(raws) else None


# The bug.


def _candidates(
    context: Context, first: Sample, samples: Sequence[Sample], divergence: Location | None
) -> list[Candidate]:
    """Return every bug beside the smallest failure; those that come nearest, beside all of the samples."""

    def applicable(mutant: Mutant) -> bool:
        return is_applicable(mutant, context.testbed, first.case, first.settings)

    def beside(some: Sequence[Sample], names: Sequence[str]) -> list[Candidate]:
        return _beside(context, some, names)

    location = None if divergence is None else (divergence.layer, divergence.module)
    return search(Search(context.testbed, beside, applicable, first, samples, location))


def _beside(context: Context, samples: Sequence[Sample], names: Sequence[str]) -> list[Candidate]:
    """Return the bugs of these names beside the samples; each worker has a share of those that are not there yet."""
    names = list(dict.fromkeys(names))
    futures = [_project(context, sample, [name for name in names if name not in sample.terms]) for sample in samples]
    for done, (sample, of_sample) in enumerate(zip(samples, futures, strict=True), 1):
        for future in of_sample:
            sample.terms.update(future.result())
        context.observer.advance("explaining", done, len(samples))
    return [evaluate(find_bug(name, context.testbed), [sample.terms[name] for sample in samples]) for name in names]


def _project(context: Context, sample: Sample, names: Sequence[str]) -> list[Future]:
    """Submit the projection of these bugs on a sample, in as many shares as there are workers."""
    share = max(1, ceil_div(len(names), max(context.settings.jobs, 1)))
    shares = [names[i : i + share] for i in range(0, len(names), share)]
    return [context.workers.submit(project_bugs, sample, some) for some in shares]


def _cause(context: Context, played: Sequence[PlayedCase]) -> tuple[CauseReport | None, list[str]]:
    """Return the cause by a fit, and what went wrong in looking for it, or why nobody looked."""
    context.observer.advance("looking for the cause", 0, 1)
    try:
        cause = cause_of(context.driver, context.testbed, context.members, context.thresholds, played)
        return cause, why_not_fitted(context.testbed)
    except EngineError as error:
        return None, [f"while the cause was looked for: {error}"]


# The place.


def _located(context: Context, failed: Sequence[PlayedCase]) -> tuple[list[Location], Location | None, list[str]]:
    """Return how far off each layer and module is, the first that is off, and what went wrong in finding out: from
    intermediates, if the engine shows them; else from adapters cut to size."""
    batch = next((one for one in failed if one.case.stateless), None)
    if batch is None:
        return [], None, []
    context.observer.advance("locating", 0, 1)
    failures = context.failures(batch.case, batch.settings)
    wrong = [exchange for exchange, _ in failures if exchange.adapter is not None]
    locations: list[Location] = []
    divergence: Location | None = None
    try:
        if wrong:
            locations = _traced(context, batch.case, wrong[0])
            divergence = first_off(locations, context.thresholds)
        if wrong and divergence is None and (ablated := _ablated(context, wrong)) is not None:
            locations, divergence = ablated, next(iter(ablated), None)
    except EngineError as error:
        return locations, divergence, [f"while the failure was located: {error}"]
    context.observer.advance("locating", 1, 1)
    return locations, divergence, []


def _traced(context: Context, case: Case, exchange: Exchange) -> list[Location]:
    """Return what the engine's intermediates say of a request; [] if it shows none."""
    traced: Any = getattr(context.driver.engine, "traced", None)
    if not context.driver.capabilities.trace or traced is None:
        return []
    responses = traced(case.runs[exchange.run].requests)
    return intermediates(exchange, responses[exchange.index], context.testbed, context.members)


def _ablated(context: Context, wrong: Sequence[Exchange]) -> list[Location] | None:
    """Return what adapters cut to one module, then one layer, say; None if they cannot be loaded, or cut."""
    one = next((exchange for exchange in wrong if len(exchange.adapters) == 1), None)
    if one is None or "load" not in context.driver.capabilities.operations:
        return None
    adapter = context.testbed.adapters[one.adapters[0][0]]
    if adapter.replaced or adapter.biases or adapter.tokens:
        return None
    work = context.driver.work / "ablation"
    return by_ablation(context.driver.engine, adapter, context.testbed, context.members, context.thresholds, work)


def locate_layers(context: Context, played: Sequence[PlayedCase]) -> tuple[list[Location], list[str]]:
    """Return how far off each module is in a batch where nothing failed, if the engine shows its intermediates; and
    what went wrong in finding out."""
    batch = next((one for one in played if one.case.stateless), None)
    if not context.driver.capabilities.trace or batch is None:
        return [], []
    try:
        exchanges = context.driver.run(batch.case, batch.settings)
        exchange = next((one for one in exchanges if one.adapter is not None and not one.response.error), None)
        return ([] if exchange is None else _traced(context, batch.case, exchange)), []
    except EngineError as error:
        return [], [f"while the layers were looked at: {error}"]


def _size(played: PlayedCase) -> tuple[bool, int]:
    """Batches before sequences, short ones before long ones."""
    return not played.case.stateless, len(played.case.steps)
