"""Which request each row of a step would be of, if segments had the lengths of something else.

step   a a a b c c        "as many in a step as the one behind it": a b b c c c
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from ...arrays import Array
from .schedule import Batch, Step


def by_length_left(requests: Batch, in_order: Sequence[Step]) -> Iterator[tuple[str, Array]]:
    """Yield which request each row would be of if the segments of a step's prompt tokens were as long as what is left
    of each prompt, or as all of it; -1: none. Decode rows are their own."""
    for words, is_rest in (("what is left of its prompt", True), ("its prompt", False)):
        owners = list[int]()
        for step in in_order:
            prompts = [one for one in step.rows if not one.is_decode]
            lengths = [requests[one.request].prompt - (one.first if is_rest else 0) for one in prompts]
            count = sum(one.length for one in prompts)
            wrong = [one.request for one, length in zip(prompts, lengths, strict=True) for _ in range(length)][:count]
            wrong += [-1] * (count - len(wrong))  # where produced tokens are computed again with their prompt
            for one in step.rows:
                owners += [one.request] if one.is_decode else wrong[: one.length]
                wrong = wrong if one.is_decode else wrong[one.length :]
        yield f"the request that a row is of if each has as many in a step as {words} is long", np.array(owners)


def by_length_of_others(requests: Batch, in_order: Sequence[Step], slots: Array) -> Iterator[tuple[str, Array]]:
    """Yield which request each row would be of if the segments of a step were as long as the one behind or before each
    is. slots: of each request in each step, -1: none."""
    for by_slot, order in ((False, ""), (True, ", in the order of slots")):
        for shift, which in ((-1, "behind"), (1, "before")):
            owners = list[int]()
            for step, of_step in zip(in_order, slots.tolist(), strict=True):
                rows = sorted(step.rows, key=lambda one: of_step[one.request]) if by_slot else step.rows
                lengths = [one.length for one in rows]
                rolled = [*lengths[-shift:], *lengths[:-shift]]
                wrong = [one.request for one, length in zip(rows, rolled, strict=True) for _ in range(length)]
                starts = dict(zip(rows, itertools.accumulate(lengths, initial=0), strict=False))
                for one in step.rows if by_slot else ():
                    owners += wrong[starts[one] : starts[one] + one.length]
                owners += () if by_slot else wrong
            yield (
                f"the request that a row is of if each has as many in a step as the one {which} it{order}",
                np.array(owners),
            )
