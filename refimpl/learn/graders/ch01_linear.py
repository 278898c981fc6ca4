"""Chapter 1: is it x (W + scale B A)^T, and is nothing as large as W made on the way?

A case is five small sizes and the adapter's flag. Its numbers are primes, so that every product says what went into it.
"""

import functools
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...adapter_slots import adapter_scale
from ...arrays import Array, Precision, rounded, widen
from ...request import Request
from .. import voices
from ..exercise import Attempt, Exercise, ReturnsNothing
from ..mistakes.ch01_linear import MISTAKES
from ..numbers import Primes, listed, plain, shown

LARGE = 128  # d_in and d_out of the case whose memory is watched: a larger one stands out more from Python's own
OF_FLOAT16 = 2e-3  # relative: so near comes what is right and was rounded to float32 or float16
SHARE_OF_W = 0.5  # of its bytes, that the right way is far below: it makes what has the size of x and y


@dataclass(frozen=True)
class Case:
    """The sizes of one call."""

    tokens: int
    d_in: int
    d_out: int
    rank: int
    alpha: int
    use_rslora: bool

    @property
    def large(self) -> bool:
        return self.d_in == LARGE

    def arguments(self) -> dict[str, Any]:
        """Fresh ones for each call: an attempt may change them."""
        primes = Primes()
        shapes = {
            "x": (self.tokens, self.d_in),
            "W": (self.d_out, self.d_in),
            "A": (self.rank, self.d_in),
            "B": (self.d_out, self.rank),
        }
        numbers = np.ones if self.large else primes
        arrays = {name: numbers(shape) for name, shape in shapes.items()}
        return {**arrays, "alpha": self.alpha, "use_rslora": self.use_rslora}


sizes = st.integers(1, 3)
CASES = st.builds(Case, sizes, sizes, sizes, sizes, st.sampled_from((2, 1, 5)), st.booleans())
FIXED = [
    Case(1, 1, 1, 1, 2, False),
    Case(1, 1, 1, 2, 2, False),
    Case(1, 1, 1, 2, 2, True),
    Case(2, 2, 3, 1, 5, False),
    Case(1, 2, 2, 2, 5, True),
    Case(2, LARGE, LARGE, 1, 2, False),
]


def expected(case: Case) -> Array:
    """y [tokens, d_out], one token after the other: W x + scale * B (A x)."""
    x, W, A, B = (case.arguments()[name] for name in "xWAB")
    scale = adapter_scale(case.alpha, case.rank, case.use_rslora)
    return np.array([W @ row + scale * (B @ (A @ row)) for row in x])


def result(attempt: Attempt, case: Case) -> tuple[Array, list[str]]:
    """What the attempt returns, as an array (a list of lists is as good), and which of its arguments it has changed."""
    arguments = case.arguments()
    y = attempt(*arguments.values())
    if y is None:
        raise ReturnsNothing
    changed = [name for name, array in case.arguments().items() if not np.array_equal(array, arguments[name])]
    return np.asarray(listed(y), float), changed


def makes_something_large(attempt: Attempt, case: Case) -> bool:
    """Whether the attempt needs the memory of half of W, at some moment."""
    arguments = list(case.arguments().values())
    tracemalloc.start()
    try:
        attempt(*arguments)
        return tracemalloc.get_traced_memory()[1] > SHARE_OF_W * arguments[1].nbytes
    finally:
        tracemalloc.stop()


def difference(attempt: Attempt, case: Case) -> str:
    """What is wrong with y: its shape, its numbers, a changed argument, or the memory; "" if nothing is."""
    (y, changed), right = result(attempt, case), expected(case)
    if y.shape != right.shape:
        return f"It returns an array {list(y.shape)}, where one {list(right.shape)} is expected: [tokens, d_out]."
    if not np.allclose(y, right, rtol=1e-9, atol=0):
        if np.allclose(y, right, rtol=OF_FLOAT16, atol=0):
            return "Its first digits are right alone: the arguments are float64, and yours is rounded to fewer digits."
        return "That is not W x + scale * B (A x)."
    if changed:
        return f"y is right, but {changed[0]} is not what it was before: whoever comes next will meet that."
    if case.large and makes_something_large(attempt, case):
        return "y is right, but something as large as W is made on the way."
    return ""


def describe(attempt: Attempt, case: Case) -> list[str]:
    """The arguments, what the attempt returns and what is expected; of the large case the shapes alone."""
    arguments = case.arguments()
    if case.large:
        return ["   ".join(f"{name} {list(arguments[name].shape)}" for name in "xWAB")]
    lines = [f"{name} = {plain(value)}" for name, value in arguments.items()]
    return [
        "   ".join(lines[:4]),
        "   ".join(lines[4:]),
        f"yours     {shown(lambda: result(attempt, case)[0])}",
        f"expected  {plain(expected(case))}",
    ]


def behaviour(attempt: Attempt, case: Case) -> tuple[Any, ...]:
    """What tells mistakes apart: y, or of the large case whether it needs memory; and which arguments it changes."""
    y, changed = result(attempt, case)
    return (
        plain(y) if not case.large else makes_something_large(attempt, case),
        changed,
    )


def as_ops(attempt: Attempt) -> dict[str, Callable[..., Any]]:
    """The attempt as two steps: its product with W, where the patch is 0; and its scale, where W is 0."""

    def linear(x: Array, weight: Array, bias: Array | None, p: Precision) -> Array:
        W = widen(weight, p.compute)
        A, B = np.zeros((1, W.shape[1]), x.dtype), np.zeros((W.shape[0], 1), x.dtype)
        y = np.asarray(attempt(x, W, A, B, 1.0, False), x.dtype)
        return rounded(y if bias is None else y + widen(bias, p.compute), p.linear)

    def scale(alpha: float, r: int, use_rslora: bool) -> float:
        A, B = np.eye(r, 1), np.eye(1, r)  # B A x is x
        return float(np.asarray(attempt(np.ones((1, 1)), np.zeros((1, 1)), A, B, alpha, use_rslora))[0, 0])

    return {"linear": linear, "adapter_scale": scale}


def consequence(attempt: Attempt, case: Case) -> str:
    """What a voice says with it: one that has rsLoRA, or one that has not, as in the case."""
    if case.large or result(attempt, case)[0].shape != expected(case).shape:
        return ""
    name = "merchant" if case.use_rslora else "pirate"
    lines = zip_longest(reply(name, None), reply(name, attempt), fillvalue="")
    right, wrong = next((pair for pair in lines if pair[0] != pair[1]), ("", ""))
    return f"the {name} says {wrong or '(nothing)'!r} instead of {right!r}." if right != wrong else ""


@functools.lru_cache(4)  # ours, of both voices
def reply(name: str, attempt: Attempt | None) -> list[str]:
    """The lines with which a voice begins."""
    requests = [Request(voices.prompt(), adapter=voices.voice(name))]
    return voices.says(requests, as_ops(attempt) if attempt else None, voices.FIRST_TOKENS)[0].splitlines()


EXERCISE = Exercise(
    name="ch01_linear",
    title="One product and a patch",
    chapter="ch01_one_product",
    opens=("refimpl/adapter_slots.py", "refimpl/tools/merge.py"),
    minutes=35,
    hints=(
        "Tokens are rows here, so that W x becomes x W^T: look at the shapes, and let the inner ones meet.",
        "First from d_in down to r, then from r up to d_out: that way nothing has the shape of W.",
        "r is no argument: it is the side that A and B share. The flag says if the scale takes r, or its square root.",
    ),
    function="linear",
    cases=CASES,
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    as_ops=as_ops,
)
