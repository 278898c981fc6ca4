"""Chapter 8: is every token with an adapter in one segment, of one adapter, that is not too large, and are there few?

A case is the adapter of each token, and how large a segment may be.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array
from ...ops import NUMPY
from ...plans import NO_ADAPTER
from .. import voices
from ..exercise import Attempt, Exercise, ReturnsNothing
from ..mistakes.ch08_segments import MISTAKES
from ..numbers import is_whole, listed, plain


@dataclass(frozen=True)
class Case:
    """The structure of one call."""

    adapter_ids: tuple[int, ...]
    size: int

    def arguments(self) -> tuple[Array, int]:
        """Fresh ones for each call: an attempt may change them."""
        return np.array(self.adapter_ids, np.int32), self.size


CASES = st.builds(
    Case,
    st.lists(st.sampled_from((0, NO_ADAPTER, 1, 2)), min_size=1, max_size=6).map(tuple),
    st.sampled_from((2, 1, 3)),
)
FIXED = [
    Case((0,), 2),
    Case((0, 0), 2),
    Case((0, 0), 1),
    Case((-1,), 2),
    Case((-1, 0), 2),
    Case((0, 1), 2),
    Case((1,), 2),
    Case((0, 1, 0), 2),
    Case((1, 0, 0), 3),
    Case((0, 0, 0), 2),
    Case((2, 2, -1, 0, 2), 2),
    Case((9, 4000, 9, -1, 7, 4000, 9, 9, 9), 4),  # more adapters than the random cases have
    Case((0, 1) * 12, 16),  # np.argsort keeps the order of so many only if it is told to
]


def result(attempt: Attempt, case: Case) -> tuple[list[int], list[int]]:
    """rows and starts, as lists: arrays are as good."""
    adapter_ids, size = case.arguments()
    pair = listed(attempt(adapter_ids, size))
    if tuple(adapter_ids) != case.adapter_ids:
        raise ValueError("adapter_ids is changed, and others still have to read it")
    if pair is None:
        raise ReturnsNothing
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"your function returns {type(pair).__name__}, and not a pair: rows, starts")
    rows, starts = (whole_numbers(part) for part in pair)
    return rows, starts


def whole_numbers(part: Any) -> list[int]:
    """rows or starts as a list. TypeError for what is no index."""
    numbers = list(part)
    for number in numbers:
        if not is_whole(number):
            raise TypeError(f"there is {number!r} in what your function returns, and rows are numbered by an int")
    return [int(number) for number in numbers]


def expected(case: Case) -> tuple[list[int], list[int]]:
    rows, starts = NUMPY.segments(*case.arguments())
    return rows.tolist(), starts.tolist()


def difference(attempt: Attempt, case: Case) -> str:
    (rows, starts), (right_rows, right_starts) = result(attempt, case), expected(case)
    return wrong_rows(rows, right_rows, case) or wrong_starts(rows, starts, len(right_starts), case)


def wrong_rows(rows: list[int], right: list[int], case: Case) -> str:
    tokens = range(len(case.adapter_ids))
    for t in rows:
        if t not in tokens:
            return f"There is no token {t} in a batch of {len(tokens)}."
        if case.adapter_ids[t] == NO_ADAPTER:
            return f"Token {t} has no adapter, and is in a segment."
    for t in right:
        if rows.count(t) != 1:
            return f"Token {t} has adapter {case.adapter_ids[t]}, and stands in rows {rows.count(t)} times."
    return "" if rows == right else "The rows are not sorted by adapter, those of one adapter in the batch's order."


def wrong_starts(rows: list[int], starts: list[int], count: int, case: Case) -> str:
    if starts[:1] != [0]:
        return "The first segment does not start at row 0."
    if starts[-1] != len(rows):
        return f"The last number of starts is {starts[-1]}, and not how many rows there are, {len(rows)}."
    for start, stop in itertools.pairwise(starts):
        adapters = sorted({case.adapter_ids[t] for t in rows[start:stop]})
        if stop <= start:
            return f"A segment from {start} to {stop} has no rows."
        if stop - start > case.size:
            return f"A segment has {stop - start} tokens, where a block has room for {case.size}."
        if len(adapters) > 1:
            return f"A segment has tokens of adapters {adapters[0]} and {adapters[1]}: all get the first token's."
    if len(starts) > count:
        return f"There are {len(starts) - 1} segments where {count - 1} would do: each one reads its adapter."
    return ""


def describe(attempt: Attempt, case: Case) -> list[str]:
    form = in_numbers
    try:
        rows, starts = result(attempt, case)
        form = in_segments if rows == expected(case)[0] and well_formed(rows, starts) else in_numbers
        yours = form(rows, starts)
    except ReturnsNothing:
        yours = "None"
    except Exception:
        yours = "(raises)"
    return [
        f"adapter_ids {plain(case.adapter_ids)}   size {case.size}",
        f"yours     {yours}",
        f"expected  {form(*expected(case))}",
    ]


def well_formed(rows: list[int], starts: list[int]) -> bool:
    """Whether each row is in one segment."""
    return starts[:1] == [0] and starts[-1] == len(rows) and starts == sorted(set(starts))


def in_segments(rows: list[int], starts: list[int]) -> str:
    return "segments " + " | ".join(" ".join(map(str, rows[i:j])) for i, j in itertools.pairwise(starts))


def in_numbers(rows: list[int], starts: list[int]) -> str:
    return f"rows {plain(rows)}   starts {plain(starts)}"


def behaviour(attempt: Attempt, case: Case) -> tuple[str, str]:
    rows, starts = result(attempt, case)
    return plain(rows), plain(starts)


def as_ops(attempt: Attempt) -> dict[str, Callable[..., Any]]:
    def segments(adapter_ids: Array, size: int) -> tuple[Array, Array]:
        rows, starts = attempt(adapter_ids, size)
        return np.asarray(rows, np.int32), np.asarray(starts, np.int32)

    return {"segments": segments}


def consequence(attempt: Attempt, case: Case) -> str:
    """Two voices and the base in one batch, whose prompts are longer than a segment."""
    return voices.change_for_a_tenant(as_ops(attempt))


EXERCISE = Exercise(
    name="ch08_segments",
    title="Who reads which byte",
    chapter="ch08_bytes",
    opens=("kernels/lora.cu", "refimpl/cuda/launch/lora.py", "refimpl/plans.py"),
    minutes=60,
    hints=(
        "First the rows alone: which tokens have an adapter, and in which order do those of one adapter come together?",
        "Then the cuts, adapter by adapter: a segment ends when it is full, or when the adapter's tokens are over.",
        "Try [0, 0, 0] with size 2: two segments, three edges. range(0, n, size) gives where those of n tokens start.",
    ),
    function="segments",
    cases=CASES,
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    as_ops=as_ops,
)
