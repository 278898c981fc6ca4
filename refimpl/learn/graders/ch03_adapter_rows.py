"""Chapter 3: does every token get the adapters of its request, and nobody else's?

A case is the requests of a batch: the adapter slots of each, and how many tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array
from ...plans import NO_ADAPTER, Adapters
from ...request import Request
from .. import voices
from ..exercise import Attempt, Exercise, ReturnsNothing
from ..mistakes.ch03_adapter_rows import MISTAKES
from ..numbers import columns, is_whole, plain, shown

Case = tuple[tuple[tuple[int, ...], int], ...]  # (its adapter slots, its tokens) of each request

adapter_slots = st.lists(st.sampled_from((0, 1, 2)), max_size=2, unique=True).map(tuple)
CASES = st.lists(st.tuples(adapter_slots, st.integers(1, 3)), min_size=1, max_size=4).map(tuple)
FIXED: Sequence[Case] = [
    (((0,), 1),),
    (((), 1),),
    (((0,), 2),),
    (((), 1), ((0,), 2)),
    (((0,), 2), ((), 1)),
    (((0, 1), 1),),
    (((1,), 1), ((0, 2), 1)),
    (((1, 0), 3), ((), 1), ((2,), 2)),
    (((300, 7, 11), 2), ((5,), 1), ((), 40), ((70_000,), 1), ((7, 5), 3), ((300,), 1)),  # larger than the random ones
]


def arguments(case: Case) -> tuple[list[list[int]], list[int]]:
    """Fresh ones for each call: an attempt may change them."""
    return [list(slots) for slots, _ in case], [tokens for _, tokens in case]


def expected(case: Case) -> list[list[int]]:
    k = max(1, *(len(slots) for slots, _ in case))
    return [[*slots, *[NO_ADAPTER] * (k - len(slots))] for slots, tokens in case for _ in range(tokens)]


def result(attempt: Attempt, case: Case) -> list[Any]:
    """What the attempt returns, as a list, whatever it is that it returns."""
    rows = attempt(*arguments(case))
    if rows is None:
        raise ReturnsNothing
    return [np.asarray(row).tolist() for row in rows]


def difference(attempt: Attempt, case: Case) -> str:
    rows, right = result(attempt, case), expected(case)
    if rows == right:
        other = next((value for row in rows for value in row if not is_whole(value)), None)
        return "" if other is None else f"There is {other!r} in a row: the number of a slot is whole, an int."
    if len(rows) != len(right):
        return f"Each token of the batch needs a row: {len(right)} rows, and your function returns {len(rows)}."
    t = next(t for t in range(len(right)) if rows[t] != right[t])
    if not isinstance(rows[t], list) or len(rows[t]) != len(right[t]):
        return f"Row {t} has another shape than [k]: k is {len(right[t])} here."
    request = next(i for i in range(len(case)) if t < sum(tokens for _, tokens in case[: i + 1]))
    return f"Token {t} is request {request}'s, and its row is not what that one asked for."


def describe(attempt: Attempt, case: Case) -> list[str]:
    requests = [
        {"": f"request {i}", "slots": f"adapter slots {plain(list(slots))}", "tokens": f"tokens {tokens}"}
        for i, (slots, tokens) in enumerate(case)
    ]
    return [
        *columns(requests),
        f"yours     {shown(lambda: result(attempt, case))}",
        f"expected  {plain(expected(case))}",
    ]


def behaviour(attempt: Attempt, case: Case) -> str:
    return plain(result(attempt, case))


def as_ops(attempt: Attempt) -> dict[str, Callable[..., Any]]:
    """The attempt on the numbers of all (adapter slot, weight) of the batch, so that the weights come along."""

    def lora_mapping(per_request: Sequence[Adapters], lengths: Sequence[int]) -> tuple[Array, Array]:
        pairs = [pair for adapters in per_request for pair in adapters]
        numbers = iter(range(len(pairs)))
        numbered = [[next(numbers) for _ in adapters] for adapters in per_request]
        rows = np.asarray(attempt(numbered, list(lengths)), int)
        pairs.append((NO_ADAPTER, 0.0))  # the last one: -1 finds it
        slots, weights = zip(*pairs, strict=True)
        return np.array(slots, np.int32)[rows], np.array(weights, np.float64)[rows]

    return {"lora_mapping": lora_mapping}


def consequence(attempt: Attempt, case: Case) -> str:
    """Two voices and the base in one batch, and somebody who sums half a pirate and half a merchant."""
    rows = result(attempt, case)
    if not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        return ""  # no array of two axes, which is what the engine takes
    half = [(voices.voice(name), 0.5) for name in ("pirate", "merchant")]
    return voices.change_for_a_tenant(as_ops(attempt), [Request(voices.prompt(), adapter=half)])


EXERCISE = Exercise(
    name="ch03_adapter_rows",
    title="Requests become one flat batch",
    chapter="ch03_flat_batch",
    opens=("refimpl/batch.py", "refimpl/model.py"),
    minutes=40,
    hints=(
        "Two steps: a row for each request, all of the same length k; then that row once for each of its tokens.",
        "An array full of -1, [requests, k], can be written into request by request. What is k if all lists are empty?",
        "np.repeat takes a list of counts, and an axis: look up what it does with [2, 1] along axis 0.",
    ),
    function="adapter_rows",
    cases=CASES,
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    as_ops=as_ops,
)
