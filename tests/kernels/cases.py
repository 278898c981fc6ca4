"""What the tests of the kernels share: numbers of each type, poison, and orders of scheduling.

How far off is too far: a bound that is computed next to the result in float64, refimpl/oracle/vectors/bounds.py."""

from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from hypothesis import strategies as st

from refimpl.cuda import launch, runner
from refimpl.cuda.launch import STORED, start, stored, widened
from refimpl.oracle.vectors.bounds import Near

NAN = {"float32": np.nan, "float16": np.nan, "bfloat16": 0x7FC0}

every_dtype = pytest.mark.parametrize("dtype", list(STORED))
orders = st.one_of(st.sampled_from(["forward", "reverse"]), st.integers(0, 2**31 - 1))

needs_cpu = pytest.mark.skipif(runner.device() != "cpu", reason="the scheduling order is the CPU runner's")


def rounded_if(really: bool, near: Near, dtype: str) -> Near:
    """Rounded to the type, where the case rounds there."""
    return near.rounded(dtype) if really else near


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
