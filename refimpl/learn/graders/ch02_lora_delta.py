"""Chapter 2: does each row get its own adapter's patch, in place, and a row with -1 nothing at all?

A case is the ranks of the adapters and the ids of the tokens. Its numbers are primes, and the scales
halves of primes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ... import lora
from ...adapter_slots import AdapterSlots, LoraWeights
from ...arrays import Array, Precision, rounded
from ...config import EMBED, Module
from ...plans import NO_ADAPTER, LoraMapping
from .. import voices
from ..exercise import Attempt, Exercise
from ..mistakes.ch02_lora_delta import MISTAKES
from ..numbers import Primes, columns, plain, shown


@dataclass(frozen=True)
class Case:
    """The structure of one call."""

    ranks: tuple[int, ...]
    adapter_ids: tuple[int, ...]
    d_in: int = 1
    d_out: int = 1
    nan_without_adapter: bool = False  # what stands in rows that nobody uses is anything: an engine pads its batches

    def arguments(self) -> dict[str, Any]:
        """Fresh ones for each call: an attempt may change them."""
        primes, ids = Primes(), np.array(self.adapter_ids)
        arguments: dict[str, Any] = {
            "y": primes((len(ids), self.d_out)),
            "x": primes((len(ids), self.d_in)),
            "A": [primes((r, self.d_in)) for r in self.ranks],
            "B": [primes((self.d_out, r)) for r in self.ranks],
            "scale": [float(primes()) / 2 for _ in self.ranks],
            "adapter_ids": ids,
        }
        if self.nan_without_adapter:
            arguments["x"][ids == NO_ADAPTER] = np.nan
        return arguments


@st.composite
def cases(draw: st.DrawFn) -> Case:
    ranks = draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    adapter_id = st.sampled_from((0, NO_ADAPTER, *range(1, len(ranks))))
    ids = draw(st.lists(adapter_id, min_size=1, max_size=4))
    widths = st.integers(1, 2)
    return Case(tuple(ranks), tuple(ids), draw(widths), draw(widths), draw(st.booleans()))


FIXED = [
    Case((1,), (0,)),
    Case((1,), (-1,)),
    Case((1, 1), (-1,)),
    Case((1, 1), (1,)),
    Case((1,), (0, -1)),
    Case((1, 1), (1, 0)),
    Case((2, 1), (0, 1)),
    Case((1, 2), (1, 0, -1), 2, 2),
    Case((1,), (-1, 0), nan_without_adapter=True),
    Case((1,) * 9, (8, 3, -1, 5, 8)),  # more adapters than the random cases have
]


def expected(case: Case) -> Array:
    """The loop over tokens of the chapter."""
    y, x, A, B, scale, adapter_ids = case.arguments().values()
    for t, i in enumerate(adapter_ids):
        if i != NO_ADAPTER:
            y[t] += scale[i] * (B[i] @ (A[i] @ x[t]))
    return y


def result(attempt: Attempt, case: Case) -> Array:
    """y, after the attempt."""
    arguments = case.arguments()
    attempt(*arguments.values())
    return arguments["y"]


def difference(attempt: Attempt, case: Case) -> str:
    y, right = result(attempt, case), expected(case)
    for t, i in enumerate(case.adapter_ids):
        if np.array_equal(y[t], right[t]):  # whole numbers and halves: a sum in another order is the same to the bit
            continue
        if i == NO_ADAPTER:
            return f"Token {t} has no adapter, and its row of y is changed."
        return f"Token {t} has adapter {i}, and its row of y is not what that one makes of it."
    return ""


def describe(attempt: Attempt, case: Case) -> list[str]:
    y, x, A, B, scale, _ = case.arguments().values()
    adapters = [
        {
            "": f"adapter {i}",
            "A": f"A = {plain(A[i])}",
            "B": f"B = {plain(B[i])}",
            "scale": f"scale = {plain(scale[i])}",
        }
        for i in range(len(A))
    ]
    tokens = [
        {"": f"token {t}", "id": f"id {i}", "x": f"x = {plain(x[t])}", "y": f"y = {plain(y[t])}"}
        for t, i in enumerate(case.adapter_ids)
    ]
    return [
        *columns(adapters),
        *columns(tokens),
        f"yours     {shown(lambda: result(attempt, case))}",
        f"expected  {plain(expected(case))}",
    ]


def behaviour(attempt: Attempt, case: Case) -> str:
    return plain(result(attempt, case))


def as_ops(attempt: Attempt) -> dict[str, Callable[..., Any]]:
    """The attempt in every linear layer; what the exercise leaves out (look-ups, DoRA, a bias) stays ours."""

    def lora_delta(
        y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        resident = adapters.at(module)
        if not all(is_plain(weights, module, y) for weights in resident.values()):
            lora.lora_delta(y, x, module, adapters, mapping, p)
            return
        for column in mapping.columns if resident else ():
            segments = [segment for segment in column.segments if segment.slot in resident]
            # An adapter at another weight is another adapter for the attempt.
            pairs = sorted({(slot, 1.0) for slot in resident} | {(each.slot, each.weight) for each in segments})
            adapter_ids = np.full(len(y), NO_ADAPTER)
            for segment in segments:
                adapter_ids[segment.rows] = pairs.index((segment.slot, segment.weight))
            A, B = [resident[slot].A for slot, _ in pairs], [resident[slot].B for slot, _ in pairs]
            attempt(y, x, A, B, [resident[slot].scale * weight for slot, weight in pairs], adapter_ids)
            y[:] = rounded(y, p.linear)

    return {"lora_delta": lora_delta}


def is_plain(weights: LoraWeights, module: Module, y: Array) -> bool:
    """Whether it is what the exercise has: two matrices and a scale."""
    return module != EMBED and weights.bias is None and weights.dora is None and len(weights.B) == y.shape[1]


def consequence(attempt: Attempt, case: Case) -> str:
    return voices.change_for_a_tenant(as_ops(attempt))


EXERCISE = Exercise(
    name="ch02_lora_delta",
    title="Two adapters, one batch",
    chapter="ch02_two_adapters",
    opens=("refimpl/lora.py",),
    minutes=40,
    hints=(
        "Write the loop over the tokens first: which A, B and scale does token t need, and when does it need none?",
        "By adapter: which rows have the id i? np.flatnonzero(adapter_ids == i) are their numbers. What of -1?",
        "With those row numbers, x[rows] is a copy of them, and y[rows] += ... changes y itself. y = y + ... does not.",
    ),
    function="lora_delta",
    cases=cases(),
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    as_ops=as_ops,
    in_place=True,
)
