"""Below the noise: bugs too faint for any row, looked for in the errors of many cases at once. It is what a pass is
worth: which of the known bugs these cases would have shown."""

import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future

import numpy as np

from .bugs import Mutant, mutants_for
from .bugs.preconditions import is_applicable, spread
from .cases.case import requests_of, teacher_forced
from .context import Context
from .diagnosis.candidate import Candidate, evaluate
from .diagnosis.power import is_loud
from .diagnosis.workers import measure_and_project
from .noise.ceiling import ceilings
from .reports.result import PlayedCase

SAMPLE = 16  # cases that are looked at below the noise; larger: slower, and smaller bugs are seen
CEILINGS = 3  # batches of which the ceiling is computed; larger: slower, the median moves by little


def cases_below(played: Sequence[PlayedCase]) -> list[PlayedCase]:
    """Return the cases that are looked at below the noise: batches first, of few tokens before of many, then
    sequences."""
    batches = sorted(spread([one for one in played if one.case.stateless], SAMPLE), key=_tokens)
    return batches + spread([one for one in played if not one.case.stateless], SAMPLE // 4)


def _tokens(played: PlayedCase) -> int:
    return sum(len(request.prompt_ids) + request.max_new_tokens for *_, request, _ in requests_of(played.case))


def candidates_below(
    context: Context, played: Sequence[PlayedCase], shown: Collection[str] = ()
) -> tuple[list[PlayedCase], list[Candidate], list[str]]:
    """Return the cases that were looked at, every mutant beside them, and a line where the budget left some out.

    A mutant of which a hundredth would have made a row fail is looked for in no further case: rows have shown that it
    is not there. What is faint is looked for in all of them. shown: names of those that are done on bases before."""
    mutants = mutants_for(list(context.testbed.paths)).values()
    chosen, faint = cases_below(played), [one for one in mutants if one.name not in shown]
    done: list[PlayedCase] = []
    for wave in _waves(chosen):
        now = _project(context, wave, faint, done, len(chosen))
        done += now
        if len(now) < len(wave):
            break
        terms_of = {one.name: [played.terms.get(one.name, []) for played in now] for one in faint}
        faint = [one for one in faint if not is_loud(terms_of[one.name], context.thresholds)]
    late = f"the budget ended with {len(done)} of {len(chosen)} cases looked at below the noise"
    return done, _evaluated(context, done), [late] if len(done) < len(chosen) else []


def candidates_in_all(context: Context, cases: Sequence[PlayedCase]) -> list[Candidate]:
    """Return every mutant beside all of these cases, loud ones too, as far as the budget has time: they are to be
    compared."""
    _project(context, cases, list(mutants_for(list(context.testbed.paths)).values()), cases, len(cases))
    return _evaluated(context, cases)


def _waves(cases: Sequence[PlayedCase]) -> list[Sequence[PlayedCase]]:
    """Return them in groups of 1, 2, 4, 8: after the first one few mutants are left, and workers have a group at once.
    The groups do not depend on how many workers there are, nor does what is found."""
    return [cases[2**i - 1 : 2 ** (i + 1) - 1] for i in range(len(cases).bit_length())]


def _project(
    context: Context, cases: Sequence[PlayedCase], mutants: Sequence[Mutant], before: Sequence[PlayedCase], total: int
) -> list[PlayedCase]:
    """Put the terms of these mutants that are not there yet into the cases; return those for which the budget had time.
    Of what cannot show in a case there is no term. before: the cases that are done, of this total."""
    futures: list[Future | None] = []
    for one in cases:
        if (before or futures) and time.monotonic() > context.end:  # without workers, a submission is the work
            break
        names = [
            mutant.name
            for mutant in mutants
            if mutant.name not in one.terms and is_applicable(mutant, context.testbed, one.case, one.settings)
        ]
        exchanges = context.driver.exchanges(one.case, one.settings) if names else []
        arguments = (one.case, exchanges, context.members, one.settings, names)
        futures.append(context.workers.submit(measure_and_project, *arguments) if names else None)
    done: list[PlayedCase] = []
    for one, future in zip(cases, futures, strict=False):
        if (before or done) and time.monotonic() > context.end and not (future is None or future.done()):
            break
        one.terms |= {} if future is None else future.result()
        done.append(one)
        context.observer.advance("below the noise", min(len(before) + len(done), total), total)
    for future in futures[len(done) :]:
        if future is not None:
            future.cancel()
    return done


def _evaluated(context: Context, cases: Sequence[PlayedCase]) -> list[Candidate]:
    noisier = float(np.exp(max(0.0, context.thresholds.level)))
    mutants = mutants_for(list(context.testbed.paths))
    return [evaluate(mutant, [one.terms.get(name, []) for one in cases], noisier) for name, mutant in mutants.items()]


def ceiling(context: Context, played: Sequence[PlayedCase]) -> float:
    """Return the ratio of a row with every step rounded at its worst: the median over the rows of some batches."""
    bounds = []
    for one in spread([one for one in played if one.case.stateless], CEILINGS):
        sample = context.sample(one)
        pairs = [(exchange, raw) for exchange, raw in zip(sample.counted, sample.raws, strict=True) if raw]
        if pairs:
            requests = [teacher_forced(exchange, context.testbed.adapters) for exchange, _ in pairs]
            bounds += ceilings(requests, [raw for _, raw in pairs], context.testbed)
    return float(np.median(np.concatenate(bounds))) if bounds else float("nan")
