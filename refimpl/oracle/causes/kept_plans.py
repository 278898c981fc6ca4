"""Of whose adapter a row is if an engine keeps the plan of a step, which row is of which adapter, for all steps of the
same shape.

    plans = {}                                                   # what SGMV is launched with, made on the CPU
    plan = plans.setdefault((tokens, requests), plan_of(step))   # that of the first such step, in every later one
"""

import itertools
from collections.abc import Callable

import numpy as np

from ...arrays import Array
from .line import Line
from .schedule import Schedule, Step

SHAPES: dict[str, Callable[[Step], tuple[int, ...]]] = {
    "tokens": lambda step: (_tokens(step),),
    "tokens and requests": lambda step: (_tokens(step), len(step.rows)),
}
KINDS = list(itertools.product(SHAPES, ("", ", of its batch")))
WHAT = ("the row", "the adapter in the slot of the row")  # what a plan says of each row


def kept_plans(line: Line, number: int, schedule: Schedule) -> dict[str, Array]:
    """Return for each name what adapter it means at each row of a batch."""
    codes = line.codes
    names = {
        f"{what} at its place in the first step of as many {shape}{of}": list[int]()
        for (shape, of), what in itertools.product(KINDS, WHAT)
    }
    results = list(names.values())
    plans = [dict[tuple[int, ...], list[tuple[int, int]]]() for _ in KINDS]
    for n, in_order in enumerate(line.played(number, schedule)):
        requests = line.batches[n]
        plans = [{} if of else plan for plan, (_, of) in zip(plans, KINDS, strict=True)]
        for step in in_order:
            now = [
                (codes[requests[one.request].called], requests[one.request].slot_in(step.slots))
                for one in step.rows
                for _ in range(one.length)
            ]
            for k, ((shape, _), plan) in enumerate(zip(KINDS, plans, strict=True)):
                then = now if step.is_cached else plan.setdefault(SHAPES[shape](step), now)
                if n == number:
                    results[2 * k] += [code for code, _ in then]
                    results[2 * k + 1] += [codes[step.slots[slot]] if slot >= 0 else 0 for _, slot in then]
    return {words: np.array(some) for words, some in names.items()}


def _tokens(step: Step) -> int:
    return sum(one.length for one in step.rows)
