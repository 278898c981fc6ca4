"""Whose keys, values and rows a prefix cache gives to the first tokens of a request, if its key leaves the adapter out.

cache.setdefault(tokens[:end], block)     # of the first request that had these tokens; in place of (adapter, tokens)

Or if its key has the slot of the adapter, in which another one was before.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...arrays import Array
from .candidate_schedules import SIMPLE
from .line import Line
from .schedule import Schedule, Scheduled, Step

SAME = "request with the same first tokens"
NAMES = tuple(
    f"the {which} {SAME}{whose}"
    for whose in ("", ", of those with an adapter", ", of those in its slot")
    for which in ("first", "last")
)


def by_prefix(line: Line, schedule: Schedule) -> Iterator[dict[str, Array]]:
    """Yield for each batch what adapter each name means at each of its rows: at those that were computed their own."""
    block = _block(line) if line.is_reported else schedule.block or 0
    earlier = list[tuple[Scheduled, int]]()  # that have begun, in order, each with its slot
    for n, requests in enumerate(line.batches):
        yield _of_batch(line, requests, line.steps(n, schedule), block, earlier)


def _block(line: Line) -> int:
    """Return of how many tokens a block is: all that is found is of whole ones."""
    steps = (step for n in range(len(line.batches)) for step in line.steps(n, SIMPLE) if step.is_cached)
    return math.gcd(*(one.length for step in steps for one in step.rows))


def _of_batch(
    line: Line, requests: Sequence[Scheduled], steps: Sequence[Step], block: int, earlier: list[tuple[Scheduled, int]]
) -> dict[str, Array]:
    """earlier: what has begun before; those that begin in this batch are added."""
    results: dict[str, list[int]] = {name: [] for name in NAMES}
    begun = set[int]()
    for step in steps:
        for one in step.rows:
            request = requests[one.request]
            for start in range(0, one.length, block) if step.is_cached else ():
                ids, slot = request.ids[: start + block], _slot(step, one.request)
                same = [(of, its) for of, its in earlier if of.ids[: start + block] == ids]
                adapted, beside = [of for of, _ in same if of.adapters], [of for of, its in same if its == slot]
                groups = ([of for of, _ in same], adapted, beside)
                of_names = [some for group in groups for some in (group[:1], group[-1:])]
                for words, some in zip(NAMES, of_names, strict=True):
                    results[words] += [line.codes[(*some, request)[0].called]] * block
            for of_rows in () if step.is_cached else results.values():
                of_rows += [line.codes[request.called]] * one.length
        if not step.is_cached:
            new = [one.request for one in step.rows if one.request not in begun]
            earlier += [(requests[i], _slot(step, i)) for i in new]
            begun |= {one.request for one in step.rows}
    return {words: np.array(some) for words, some in results.items()}


def _slot(step: Step, request: int) -> int:
    """Return the slot of a request's adapter, -1: none."""
    return step.places[request] if step.places else -1
