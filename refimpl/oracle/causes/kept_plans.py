"""Of whose adapter a row is if an engine keeps the plan of a step, which row is of which adapter, for all steps of the
same shape.

    plans = {}                                                   # what SGMV is launched with, made on the CPU
    plan = plans.setdefault((tokens, requests), plan_of(step))   # that of the first such step, in every later one
"""

import itertools
from collections.abc import Callable, Iterator

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


def kept_plans(line: Line, schedule: Schedule) -> Iterator[dict[str, Array]]:
    """Yield for each batch what adapter each name means at each of its rows."""
    codes, plans = line.codes, [dict[tuple[int, ...], list[tuple[int, int]]]() for _ in KINDS]
    for n, requests in enumerate(line.batches):
        results = [(list[int](), list[int]()) for _ in KINDS]
        plans = [{} if of else plan for plan, (_, of) in zip(plans, KINDS, strict=True)]
        for step in line.steps(n, schedule):
            of_parts = [(codes[requests[i].called], requests[i].slot_in(step.slots)) for i, *_ in step.rows]
            now = [of for of, one in zip(of_parts, step.rows, strict=True) for _ in range(one.length)]
            for (shape, _), plan, (rows, in_slots) in zip(KINDS, plans, results, strict=True):
                then = now if step.is_cached else plan.setdefault(SHAPES[shape](step), now)
                rows += [code for code, _ in then]
                in_slots += [codes[step.slots[slot]] if slot >= 0 else code for code, slot in then]
        yield {
            f"{what} at its place in the first step of as many {shape}{of}": np.array(some)
            for (shape, of), both in zip(KINDS, results, strict=True)
            for what, some in zip(WHAT, both, strict=True)
        }


def _tokens(step: Step) -> int:
    return sum(one.length for one in step.rows)
