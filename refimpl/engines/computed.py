"""What an engine tells of its steps, read and checked: which tokens of which request each of them computed, and where.

step   row 0 1 2 3 4 5        an answer says of its own request        (step, row, first, tokens, slot)
  7        a a a b b b        a: (7, 0, 0, 3, 1), (8, 0, 3, 1, 1)      two tokens of c were in a cache
  8        a b c c            c: (8, 2, 2, 2, 0)
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from .interface import Computed, EngineError

SLOTS = 4096  # more adapters are on no device at once; larger: slower


def read_steps(value: Iterable[Any], tokens: int) -> tuple[Computed, ...]:
    """Return the steps of a request of so many tokens, in order. EngineError where they are no steps, or leave tokens
    out that are not its first ones."""
    steps, end = list[Computed](), 0
    for one in value:
        numbers = tuple(one) if isinstance(one, Iterable) else (one,)
        if len(numbers) not in (4, 5):
            raise EngineError(f"steps: expected (step, row, first, tokens, slot), got {one!r}")
        try:
            step, row, first, count = map(operator.index, numbers[:4])
            slot = -1 if len(numbers) == 4 or numbers[4] is None else operator.index(numbers[4])
        except TypeError:
            raise EngineError(f"steps: {one!r}: a step is of whole numbers") from None
        if count < 1 or min(row, first) < 0 or slot < -1:
            raise EngineError(f"steps: {one!r}: no such row, tokens or slot")
        if slot >= SLOTS:
            raise EngineError(
                f"steps: {one!r}: slots are counted from 0 on, and below {SLOTS}: this is no slot's number"
            )
        if steps and step <= steps[-1].step:
            raise EngineError(f"steps: {one!r} stands behind step {steps[-1].step}")
        if steps and first > end:
            raise EngineError(f"steps: no step computes token {end}, and {one!r} comes after it")
        steps.append(Computed(step, row, first, count, slot))
        end = first + count
    if steps and end < tokens:
        raise EngineError(f"steps: they end with token {end - 1}, the request with token {tokens - 1}")
    return tuple(steps)


def clash(requests: Sequence[Sequence[Computed]]) -> str:
    """Return what is wrong with the steps of the requests of a batch, if it is; otherwise ""."""
    owner: dict[tuple[int, int], int] = {}
    for i, steps in enumerate(requests):
        for one in steps:
            for row in range(one.row, one.row + one.tokens):
                other = owner.setdefault((one.step, row), i)
                if other != i:
                    return f"steps: row {row} of step {one.step} is of request {other} and of request {i}"
    return ""
