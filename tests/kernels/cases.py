"""What the tests of the kernels share: numbers of each type, poison, orders of scheduling, and how far off is too far.

A bound is computed from the data, element by element, next to a result in float64:

    c * 2^-24 * sqrt(K) * sum |a||b|     for a sum of K products in float32, in whatever order (c = 4)
    half an ulp of T                     wherever a number is rounded to T, carried through what is computed from it
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import strategies as st

from refimpl.cuda import launch, runner
from refimpl.cuda.launch import STORED, start, stored, widened

C = 4.0
U = 2.0**-24  # half an ulp of 1 in float32
HALF_ULP = {"float32": (U, 2.0**-150), "float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}
NAN = {"float32": np.nan, "float16": np.nan, "bfloat16": 0x7FC0}

every_dtype = pytest.mark.parametrize("dtype", list(STORED))
orders = st.one_of(st.sampled_from(["forward", "reverse"]), st.integers(0, 2**31 - 1))

needs_cpu = pytest.mark.skipif(runner.device() != "cpu", reason="the scheduling order is the CPU runner's")


def half_ulp(x: np.ndarray, dtype: str) -> np.ndarray:
    """The most by which rounding x to the type can change it (relative to normal numbers, absolute below)."""
    relative, absolute = HALF_ULP[dtype]
    return np.maximum(np.abs(x) * relative, absolute)


@dataclass(frozen=True)
class Near:
    """A result in float64, and how far a right kernel may be from it."""

    value: np.ndarray
    off: np.ndarray

    def rounded(self, dtype: str, really: bool = True) -> "Near":
        """The same after a rounding to the type: the value is kept, the error grows by half an ulp."""
        return Near(self.value, self.off + half_ulp(np.abs(self.value) + self.off, dtype)) if really else self

    def times(self, factor: np.ndarray | float) -> "Near":
        """Multiplied by a float32 number, in float32."""
        product = self.value * factor
        return Near(product, self.off * np.abs(factor) + U * np.abs(product))


def product(a: Near, b: np.ndarray) -> Near:
    """a @ b.T of numbers that are known up to `off` with exact ones, summed up in float32."""
    terms = a.value.shape[-1]
    rounding = C * U * np.sqrt(terms) * (np.abs(a.value) @ np.abs(b).T)
    return Near(a.value @ b.T, rounding + a.off @ np.abs(b).T)


def exact(x: np.ndarray) -> Near:
    """Numbers that a kernel is given."""
    return Near(x.astype(np.float64), np.zeros(x.shape))


def assert_near(actual: np.ndarray, expected: Near, dtype: str) -> None:
    """What a kernel of this type wrote, against what it should be; a NaN is never near."""
    found = widened(actual, dtype).astype(np.float64)
    bound = expected.rounded(dtype).off
    assert found.shape == expected.value.shape
    wrong = ~(np.abs(found - expected.value) <= bound)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} numbers are off, first at {where}: {found[where]!r}, not "
            f"{expected.value[where]!r}; off by {abs(found[where] - expected.value[where]):.3g}, the bound is "
            f"{bound[where]:.3g}"
        )


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Signed numbers of very different sizes, each exact in the type, as float32."""
    x = rng.standard_normal(shape) * np.exp(rng.uniform(-3, 1, shape))
    return widened(stored(x.astype(np.float32), dtype), dtype)


def poison(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Memory full of NaN, as a kernel of the type sees it."""
    return np.full(shape, NAN[dtype], STORED[dtype])


def misplaced(x: np.ndarray, by: int) -> np.ndarray:
    """A copy that begins `by` numbers after a multiple of 16 bytes."""
    memory = np.empty(x.size + by + 16, x.dtype)
    start = (-memory.ctypes.data % 16) // x.itemsize + by
    copy = memory[start : start + x.size].reshape(x.shape)
    copy[...] = x
    return copy


def poisoned_empty(xp: object, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """In place of launch.start.empty: whatever a kernel does not write stays NaN."""
    x = np.empty(shape, dtype)
    x.view(np.uint8)[...] = 0xFF
    return x


@contextmanager
def scheduled(order: str | int, check: bool = False):
    """Blocks and threads run in this order; every buffer is poisoned; under the checker if it is asked for."""
    before = start.empty
    start.empty = poisoned_empty
    try:
        with runner.thread_schedule(order), ExitStack() as stack:
            yield stack.enter_context(launch.checked()) if check else []
    finally:
        start.empty = before
