"""A batch that failed, asked again without some of its requests and in other orders: what it takes for a mistake.

A mistake that is made in few requests goes with many facts of those: their batches have six adapters or more, they are
the first of them, the base is among them. Of a batch that is cut down request by request the one of five adapters fails
and the one of four does not, and then there is one fact left that says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..cases.case import Case, Run


def alone(case: Case, here: int) -> Case:
    """Return the request `here` of a batch as a batch of its own."""
    return _of_these(case, (here,))


def in_other_shapes(case: Case, here: int) -> Iterator[tuple[Case, int]]:
    """Yield a batch in other shapes, each with the new place of its request `here`: without its last ones, one more
    each time, without its first ones, the other way round, and with the last one first."""
    end = len(case.runs[0].requests)
    chosen = [tuple(range(last)) for last in range(end - 1, here, -1)]
    chosen += [tuple(range(first, end)) for first in range(1, here + 1)]
    chosen += [tuple(reversed(range(end))), (end - 1, *range(end - 1))]
    for places in dict.fromkeys(chosen):
        if len(places) > 1:
            yield _of_these(case, places), places.index(here)


def _of_these(case: Case, places: Sequence[int]) -> Case:
    (run,) = case.runs
    steps = (Run(tuple(run.requests[i] for i in places)),)
    return replace(case, name=f"{case.name}, requests {', '.join(map(str, places))}", steps=steps)
