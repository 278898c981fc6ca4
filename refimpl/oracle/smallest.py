"""The smallest failure: the shortest case that fails, what it says in words, and what it takes for it to go wrong."""

import time
from dataclasses import replace

from ..engines.interface import EngineError, Settings
from .anew import NotAnew, confirmed, exchanges_anew
from .cases.case import Case, Exchange, Load, Run
from .cases.shrink import Budget, ever_smaller
from .cases.words import in_words
from .context import Context
from .diagnosis.symptoms import Symptom, company
from .noise.measure import Sample, measure
from .noise.verdict import Verdict
from .reports.result import PlayedCase

SHRINKING = Budget(calls=200, seconds=45.0)


def smaller(context: Context, failed: PlayedCase) -> tuple[Case | None, list[str]]:
    """Return the failed case, made small, one that fails in a new process as well, and what there is to say of it;
    None, and why, if the engine broke off."""
    try:
        seconds = min(SHRINKING.seconds, max(0.0, (context.end - time.monotonic()) / 3))
        budget = replace(SHRINKING, seconds=seconds)
        cases = ever_smaller(failed.case, lambda case: bool(context.failures(case, failed.settings)), budget)
        return confirmed(context, cases, failed.settings)
    except EngineError as error:
        return None, [f"while the failure was made smaller: {error}"]


def said_of_smallest(context: Context, smallest: Case, settings: Settings) -> tuple[str, list[Symptom]]:
    """Return the smallest failure in words, and what it takes for it to go wrong, if its request is answered well
    alone."""
    again = _failures(context, smallest, settings)
    words = in_words(smallest, [(exchange.run, exchange.index) for exchange, _ in again])
    context.observer.shrink(words)
    if not again or not _is_right_alone(context, again[0][0], settings):
        return words, []
    return words, [Symptom(line) for line in company(smallest, again[0][0])]


def _failures(context: Context, smallest: Case, settings: Settings) -> list[tuple[Exchange, Verdict]]:
    """Return what of it is wrong in a new process, or, where none can be had, in the engine that is running."""
    try:
        return context.failures(smallest, settings, lambda: exchanges_anew(context.driver, smallest, settings))
    except NotAnew:
        return context.failures(smallest, settings)


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
