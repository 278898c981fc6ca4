"""The smallest failure: the shortest case that fails, what it says in words, and what it takes for it to go wrong."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..engines.interface import EngineError, Settings
from .anew import CONFIRMING, NotAnew, confirmed, exchanges_anew, fails_anew, shrunk_anew
from .cases.case import Case, Exchange, Load, Run
from .cases.shrink import Budget, ever_smaller
from .cases.words import in_words
from .context import Context
from .diagnosis.symptoms import Symptom, company
from .noise.measure import Sample, measure
from .noise.verdict import Verdict
from .reports.result import PlayedCase

SHRINKING = Budget(calls=200, seconds=45.0)
SEQUENCES, BATCHES = 8, 4  # failures that are tried in a new process where the shortest is right in one; larger: slower


@dataclass(frozen=True)
class Smallest:
    """The failure that is shown, how its engine was started, what there is to say of it, and whether it, or the one
    that was tried first, takes what was asked before to fail. case: None if the engine broke off."""

    case: Case | None
    settings: Settings
    lines: list[str]
    only_after: bool = False


def smaller(context: Context, failed: Sequence[PlayedCase]) -> Smallest:
    """Return the shortest of these failed cases, made small, one that fails in a new process as well. Where it fails in
    none, another does it that does: a sequence brings along what has to be asked before."""
    shortest = min(failed, key=size)
    settings = shortest.settings
    try:
        seconds = min(SHRINKING.seconds, max(0.0, (context.end - time.monotonic()) / 3))
        budget = replace(SHRINKING, seconds=seconds)
        cases = ever_smaller(shortest.case, lambda case: bool(context.failures(case, settings)), budget)
        failure = confirmed(context, cases, settings)
        if failure.only_after and (other := _other_that_fails_anew(context, failed, shortest)) is not None:
            line = f"what is shown, of {other.case.name}, fails in a new process"
            case = shrunk_anew(context, other.case, other.settings)
            return Smallest(case, other.settings, [*failure.lines, line], only_after=True)
        return Smallest(failure.case, settings, failure.lines, failure.only_after)
    except EngineError as error:
        return Smallest(None, settings, [f"while the failure was made smaller: {error}"])


def _other_that_fails_anew(context: Context, failed: Sequence[PlayedCase], shortest: PlayedCase) -> PlayedCase | None:
    """Return the first failed case that fails in a new process, sequences before batches; None if a few do not."""
    others = sorted((one for one in failed if one is not shortest), key=size)
    sequences = [one for one in others if not one.case.stateless]
    batches = [one for one in others if one.case.stateless]
    end = min(context.end, time.monotonic() + CONFIRMING)
    for one in sequences[:SEQUENCES] + batches[:BATCHES]:
        if time.monotonic() > end:
            break
        try:
            if fails_anew(context, one.case, one.settings):
                return one
        except NotAnew:  # this one ended there without an answer
            continue
    return None


def size(played: PlayedCase) -> tuple[bool, int]:
    """Batches before sequences, short ones before long ones."""
    return not played.case.stateless, len(played.case.steps)


def answers_to(context: Context, smallest: Case, settings: Settings) -> list[Exchange]:
    """Return what a new process answers, or, where none can be had, the engine that is running."""
    try:
        return exchanges_anew(context.driver, smallest, settings)
    except NotAnew:
        return context.driver.run(smallest, settings)


def said_of_smallest(
    context: Context, smallest: Case, settings: Settings, answers: Sequence[Exchange]
) -> tuple[str, list[Exchange]]:
    """Return the smallest failure in words, and those of the answers that are wrong."""
    wrong = [exchange for exchange, _ in context.failures(smallest, settings, lambda: list(answers))]
    return in_words(smallest, [(exchange.run, exchange.index) for exchange in wrong]), wrong


def what_it_takes(context: Context, smallest: Case, settings: Settings, wrong: Sequence[Exchange]) -> list[Symptom]:
    """Return what it takes for it to go wrong, if its request is answered well alone."""
    if not wrong or not _is_right_alone(context, wrong[0], settings):
        return []
    return [Symptom(line) for line in company(smallest, wrong[0])]


def _failures(context: Context, case: Case, settings: Settings) -> list[tuple[Exchange, Verdict]]:
    return context.failures(case, settings, lambda: answers_to(context, case, settings))


def _is_right_alone(context: Context, exchange: Exchange, settings: Settings) -> bool:
    """Is the same request answered well by an engine that has done nothing else?"""
    request = exchange.request
    names = [name for name, _ in request.adapter_weights] or ([request.adapter] if request.adapter else [])
    loads = [Load(name, key) for name, (key, _) in zip(names, exchange.adapters, strict=True)]
    alone = Case("alone", (*loads, Run((replace(request, arrival_step=0),))), stateless=False)
    return not _failures(context, alone, settings)


def smallest_sample(context: Context, smallest: Case, settings: Settings) -> Sample | None:
    """Return the smallest failure with its errors; None if it has no number."""
    exchanges = context.driver.run(smallest, settings)
    raws = measure(smallest, exchanges, context.testbed, context.members)[1]
    return Sample(smallest, exchanges, raws, settings) if any(raws) else None
