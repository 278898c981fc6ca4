"""Below the noise: bugs too faint for any row, looked for in the errors of many cases at once. It is what a pass is
worth: which of the known bugs these cases would have shown."""

import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from .bugs import mutants_for
from .bugs.preconditions import is_applicable, spread
from .cases.case import teacher_forced
from .context import Context
from .diagnosis.candidate import Candidate, evaluate
from .diagnosis.workers import measure_and_project
from .noise.ceiling import ceilings
from .reports.result import PlayedCase

SAMPLE = 16  # cases that are looked at below the noise; larger: slower, and smaller bugs are seen
CEILINGS = 3  # batches of which the ceiling is computed; larger: slower, the median moves by little


def cases_below(played: Sequence[PlayedCase]) -> list[PlayedCase]:
    """Return the cases that are looked at below the noise: batches first, then sequences."""
    batches = spread([one for one in played if one.case.stateless], SAMPLE)
    return batches + spread([one for one in played if not one.case.stateless], SAMPLE // 4)


def candidates_below(
    context: Context, played: Sequence[PlayedCase]
) -> tuple[list[PlayedCase], list[Candidate], list[str]]:
    """Return the cases that were looked at, every mutant beside them, and a line where the budget left some out.

    Of what cannot show in a case there is no term. The terms are kept in the cases, for the explanation."""
    mutants, chosen = mutants_for(list(context.testbed.paths)), cases_below(played)
    futures: list[Future] = []
    for one in chosen:
        if futures and time.monotonic() > context.end:  # where there are no workers, a submission is the work
            break
        names = [
            mutant.name for mutant in mutants.values() if is_applicable(mutant, context.testbed, one.case, one.settings)
        ]
        arguments = (one.case, context.driver.exchanges(one.case, one.settings), context.members, one.settings, names)
        futures.append(context.workers.submit(measure_and_project, *arguments))
    done: list[PlayedCase] = []
    for one, future in zip(chosen, futures, strict=False):
        if done and time.monotonic() > context.end and not future.done():
            break
        one.terms = future.result()
        done.append(one)
        context.observer.advance("below the noise", len(done), len(chosen))
    for future in futures[len(done) :]:
        future.cancel()
    noisier = float(np.exp(max(0.0, context.thresholds.level)))
    candidates = [
        evaluate(mutant, [one.terms.get(name, []) for one in done], noisier) for name, mutant in mutants.items()
    ]
    late = f"the budget ended with {len(done)} of {len(chosen)} cases looked at below the noise"
    return done, candidates, [late] if len(done) < len(chosen) else []


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
