"""What is behind a failure: the smallest case, the place, the bug, and the symptoms where no bug fits.

The engine is asked again for all of it, the mutants are rerun by the workers. Each part is a function that returns; the
Explanation is put together in explain().
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future

from ..arrays import ceil_div
from ..engines.interface import EngineError
from . import cause as causes
from .bugs import Mutant
from .bugs.preconditions import is_applicable, spread
from .bugs.registry import find_bug
from .cause import cause_of, why_not_fitted
from .causes.statement import CauseReport
from .context import Context
from .diagnosis.candidate import Candidate, evaluate
from .diagnosis.clock import Clock
from .diagnosis.diagnose import Finding, diagnose
from .diagnosis.localise import Location
from .diagnosis.search import Search, search
from .diagnosis.symptoms import Symptom, symptoms_of, tally
from .diagnosis.workers import project_bugs
from .location import located
from .noise.measure import Sample
from .reports.pictures import Picture, picture
from .reports.result import Explanation, PlayedCase, unreadable
from .smallest import answers_to, said_of_smallest, size, smaller, smallest_sample, what_it_takes

CLOSELY = 6  # failed cases that a bug is looked for in; larger: slower, and bugs that show rarely are named more often
PASSED = 2  # cases that passed, beside them: a bug must do nothing there; larger: slower
UNREPORTED = (
    'its steps and slots were worked out from its mistakes: an engine that tells them ("steps" in its answers, '
    "docs/check.md) is held against its own"
)
PARTLY = (
    "steps were told of {} of {} answers that are no errors: slots and tables go on from one to the next, so a rule is "
    "sure where all are told"
)
SEARCHING = 10.0  # seconds, after which no other round of the search for known bugs begins; larger: slower
ELSEWHERE = 12  # cases in which mutants that do the same may differ; larger: slower where they never do


def explain(context: Context, played: Sequence[PlayedCase], explanation: Explanation | None = None) -> Explanation:
    """Return everything that can be said of a campaign in which cases failed.

    explanation: what is known is put there as soon as it is, for whoever stops this before it returns."""
    began, explanation = time.monotonic(), explanation or Explanation()
    failed = [one for one in played if one.verdict == "fail"]
    readable = any(one.has_wrong_numbers for one in failed)
    small_one = smaller(context, failed)
    smallest, small_settings = small_one.case, small_one.settings
    explanation.diagnostics += small_one.lines
    some_answer = any(not ratios.problem for one in played for ratios in one.ratios)  # or else it fails at anything
    if smallest is not None:
        explanation.smallest, explanation.small_settings = smallest, small_settings
        if some_answer:
            explanation.answers = answers_to(context, smallest, small_settings)
            words, wrong = said_of_smallest(context, smallest, small_settings, explanation.answers)
            explanation.smallest_in_words = words
            context.observer.shrink(words)
            explanation.symptoms += what_it_takes(context, smallest, small_settings, wrong)
    close = _close_cases(played, failed)
    samples = [context.sample(one) for one in close]
    with_rows = [sample for sample in samples if any(raw is not None for raw in sample.raws)]
    small = smallest_sample(context, smallest, small_settings) if smallest is not None and readable else None
    explanation.symptoms += _symptoms(context, close, samples)
    clock = Clock(math.inf, context.end)
    is_late = not readable or clock.is_late("where it is")
    requests = [] if smallest is None or not readable else [one for run in smallest.runs for one in run.requests]
    without_adapters = bool(requests) and not any(request.adapters for request in requests)
    if without_adapters and len(requests) == 1:
        explanation.symptoms.insert(0, Symptom("wrong without any adapter: look at the base first", 1, 1))
    is_late = is_late or without_adapters  # cutting adapters would say nothing
    keeps = small_one.only_after or not context.repeatable
    if not is_late:
        explanation.locations, explanation.first_divergence, more = located(context, failed, keeps)
        explanation.diagnostics += more
    search_bugs = readable and context.settings.name_bug and not clock.is_late("the cause")
    if search_bugs:
        explanation.cause, broken_off = _cause(context, played)
        explanation.diagnostics += broken_off
    cause = explanation.cause
    search_bugs = search_bugs and not clock.is_late("the names of known bugs")
    first = small or with_rows[0] if search_bugs else None
    searching = Clock(SEARCHING, min(context.end, time.monotonic() + 2 * SEARCHING))  # workers' seconds are not ours
    candidates = (
        [] if first is None else _candidates(context, first, with_rows, explanation.first_divergence, cause, searching)
    )
    findings = _findings(context, with_rows, candidates, played)
    if cause is not None:  # a bug that is not it says nothing beside what is
        findings = [one for one in findings if one.explains]
    explanation.findings = findings
    explanation.picture = _picture(context, with_rows, findings)
    explanation.diagnostics += unreadable(played) + clock.lines + searching.lines
    explanation.seconds = time.monotonic() - began
    return explanation


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
    histories = sorted((one for one in failed if not one.case.stateless), key=size)
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


# The bug.


def _candidates(
    context: Context,
    first: Sample,
    samples: Sequence[Sample],
    divergence: Location | None,
    cause: CauseReport | None,
    clock: Clock,
) -> list[Candidate]:
    """Return every bug beside the smallest failure; those that come nearest, beside all of the samples. Where the
    cause is known it is only asked whether it has a name."""

    def applicable(mutant: Mutant) -> bool:
        return is_applicable(mutant, context.testbed, first.case, first.settings)

    def beside(some: Sequence[Sample], names: Sequence[str]) -> list[Candidate]:
        return _beside(context, some, names)

    location = None if divergence is None else (divergence.layer, divergence.module)
    is_factor = cause is None or cause.is_factor
    work = Search(context.testbed, beside, applicable, first, samples, location, clock, cause is not None, is_factor)
    return search(work)


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
        clock = Clock(context.settings.cause_seconds or causes.SECONDS, context.end, context.observer.look)
        cause = cause_of(context.driver, context.testbed, context.members, context.thresholds, played, clock)
        return cause, why_not_fitted(context.testbed) + clock.lines + unreported(context, played, cause)
    except EngineError as error:
        return None, [f"while the cause was looked for: {error}"]


def unreported(context: Context, played: Sequence[PlayedCase], cause: CauseReport | None) -> list[str]:
    """Return a line where an engine could tell its steps and does not, and they matter to what is said of it."""
    if not getattr(context.driver.engine, "may_report_steps", False):
        return []
    exchanges = (one for case in played for one in context.driver.exchanges(case.case, case.settings))
    steps = [bool(one.response.steps) for one in exchanges if not one.response.error]
    is_guess = cause is not None and any(change.is_guess for change in cause.changes)
    if is_guess and any(steps) and not all(steps):
        return [PARTLY.format(sum(steps), len(steps))]
    return [UNREPORTED] if is_guess and not any(steps) else []
