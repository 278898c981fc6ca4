"""The checker finds each of the bugs in broken/, where it is, and finds nothing in what is correct.

Every file there has two kernels with the same parameters: `broken`, whose wrong lines say what must be reported, and
`correct`, which must pass without a word and compute the same in every scheduling order.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.arrays import DTYPES
from refimpl.cuda import runner
from refimpl.cuda.parameters import CTYPES
from refimpl.errors import KernelError

BROKEN = Path(__file__).parent / "broken"
ORDERS = ["forward", "reverse", 1, 2]
N = 128  # two blocks of 64 threads


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACLE_KERNELS", "cpu")


@dataclass(frozen=True)
class Case:
    """How the kernels of one file are launched, and what the correct one must make of x."""

    expected: Callable[[np.ndarray], np.ndarray]  # x -> out, in float32; for `total` the one number
    extra: tuple[Any, ...] = ()  # arguments between x and n
    n: int = N
    smem: int = 0


def reverse(x: np.ndarray, width: int = 64) -> np.ndarray:
    return x.reshape(-1, width)[:, ::-1].reshape(-1)


def swap(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, 2)[:, ::-1].reshape(-1)


def sums(x: np.ndarray, width: int) -> np.ndarray:
    return np.repeat(x.reshape(-1, width).sum(1), width)


def lower_lanes(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.where(np.arange(N) % 32 < 16, x, other)


IDS = np.where(np.arange(100) % 3 == 0, -1, np.arange(100)[::-1]).astype(np.int32)
KEPT = 7.0  # what out holds before a launch

CASES = {
    "all_write_one": Case(lambda x: np.abs(x).max(), (np.zeros(1, np.float32),)),
    "deadlock": Case(lambda x: lower_lanes(sums(x, 32), 0 * x)),
    "divergent_barrier": Case(lambda x: reverse(np.where(np.arange(N) % 64 < 32, x, -x))),
    "divergent_warp": Case(lambda x: reverse(x, 32)),
    "dynamic_shared_overrun": Case(lambda x: x + np.where(np.arange(N) % 64 < 63, np.roll(x, -1), 0), smem=256),
    "early_return": Case(lambda x: reverse(np.pad(x, (0, N - 100)))[:100], n=100),
    "forgotten_no_adapter": Case(lambda x: np.where(IDS < 0, KEPT, x[IDS]), (IDS,), n=100),
    "global_overrun": Case(lambda x: x, n=100),
    "index_overflow": Case(lambda x: x[np.arange(N) * 2**30 % N], (2**30,)),
    "misaligned_vector": Case(lambda x: x),  # see test_correct_passes
    "missing_atomic": Case(lambda x: x.sum(), (np.zeros(1, np.float32),)),
    "missing_bounds_test": Case(lambda x: x, n=100),
    "missing_syncthreads": Case(reverse),
    "missing_syncthreads_in_loop": Case(reverse),
    "missing_syncwarp": Case(lambda x: reverse(x, 32)),
    "null_pointer": Case(lambda x: x, (None,)),
    "reads_another_block": Case(lambda x: x + np.pad(x, (1, 0))[:-1]),
    "register_array_overrun": Case(lambda x: 10 * x),
    "shuffle_is_no_barrier": Case(lambda x: reverse(x, 32) + swap(x)),
    "static_shared_overrun": Case(lambda x: sums(x, 32)),
    "undefined_lane": Case(lambda x: lower_lanes(x + np.roll(x, -8), x)),
    "uninitialised_shared": Case(lambda x: sums(x, 64)),
    "wrong_mask": Case(lambda x: x + swap(x)),
}


def launch(module: runner.Module, kernel: str, case: Case) -> tuple[np.ndarray, np.ndarray, Any]:
    """x, what the kernel made of it, and the traffic. Small whole numbers, so that every dtype adds them exactly."""
    dtype = DTYPES[module.dtype]
    x = np.random.default_rng(0).integers(-4, 5, case.n).astype(dtype)
    out = np.full(case.n, KEPT, dtype)
    extra = [e.copy() if isinstance(e, np.ndarray) else e for e in case.extra]
    traffic = module.launch(kernel, (2,), (64,), [out, x, *extra, case.n], case.smem)
    total = extra and isinstance(extra[0], np.ndarray) and extra[0].size == 1
    return x.astype(np.float32), (extra[0] if total else out).astype(np.float32), traffic


def test_every_file_has_a_case() -> None:
    assert {path.stem for path in BROKEN.glob("*.cu")} == set(CASES) and len(CASES) >= 12


@pytest.mark.parametrize("dtype", CTYPES)
@pytest.mark.parametrize("name", CASES)
def test_broken_is_reported(name: str, dtype: str) -> None:
    path = BROKEN / f"{name}.cu"
    marked = {
        i: line.partition("// <-- ")[2] for i, line in enumerate(path.read_text().splitlines(), 1) if "<--" in line
    }
    module = runner.load(path, dtype, check=True)
    for order in ORDERS:
        with runner.thread_schedule(order), pytest.raises(KernelError) as caught:
            launch(module, "broken", CASES[name])
        error = caught.value
        assert error.line in marked and error.kind in marked[error.line].split(", "), (order, str(error), marked)
        assert (error.kernel, error.file) == ("broken", path.name)
        assert len(error.block) == len(error.thread) == 3 and str(error).startswith(f"{path.name}:{error.line}: broken")
        if error.kind == "race":
            (other,) = re.findall(rf"\(at {path.name}:(\d+)\)$", str(error))
            assert "race" in marked[int(other)]


@pytest.mark.parametrize("dtype", CTYPES)
@pytest.mark.parametrize("name", CASES)
def test_correct_passes(name: str, dtype: str) -> None:
    for check in (False, True):
        module = runner.load(BROKEN / f"{name}.cu", dtype, check)
        for order in ORDERS:
            with runner.thread_schedule(order):
                x, out, _ = launch(module, "correct", CASES[name])
            expected = CASES[name].expected(x)
            if name == "misaligned_vector":  # how far 16-byte pieces reach depends on the dtype
                copied = (N - 1) // (16 // DTYPES[dtype].itemsize) * (16 // DTYPES[dtype].itemsize)
                expected = np.where(np.arange(N) < copied, np.roll(x, -1), KEPT)
            assert np.array_equal(out, np.broadcast_to(expected, out.shape)), (check, order)
