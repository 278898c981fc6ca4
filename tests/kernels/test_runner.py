"""The runner: what each of CUDA's words does on a CPU, what a launch refuses, and how a build is found again.

The GPU side runs here against a stand-in for CuPy that notes down what it is asked for; tests/gpu/ runs it for real.
"""

import itertools
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.arrays import DTYPES, device_namespace
from refimpl.cuda import line_table, runner
from refimpl.cuda.parameters import CTYPES, parameters
from refimpl.cuda.runner import cpu as runner_cpu
from refimpl.cuda.runner import cuda_headers
from refimpl.cuda.runner import gpu as runner_gpu
from refimpl.cuda.runner.cuda_headers import include_folders
from refimpl.cuda.runner.module import Schedule, setting
from refimpl.errors import DeviceError, KernelError, LoracleError

WORDS = Path(__file__).parent / "words.cu"
ORDERS = ["forward", "reverse", 1, 2]
every_dtype = pytest.mark.parametrize("dtype", CTYPES)
every_build = pytest.mark.parametrize("check", [False, True], ids=["plain", "checked"])


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACLE_KERNELS", "cpu")


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No build is known yet, neither on disk nor in this process."""
    forget = (runner_cpu.cache_folder, runner_cpu.compiler, runner._load)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for function in forget:
        function.cache_clear()
    yield tmp_path / "cache" / "loracle" / "kernels"
    for function in forget:
        function.cache_clear()


def words(dtype: str = "float32", check: bool = False) -> runner.Module:
    return runner.load(WORDS, dtype, check)


# ---- what a word does -----------------------------------------------------------------------------------------------


@every_build
@every_dtype
@pytest.mark.parametrize("switch", ["", "-DCPU_UCONTEXT"])
def test_axpy(dtype: str, check: bool, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same launch for each dtype, each order and both ways to switch from one thread to the next."""
    monkeypatch.setenv("LORACLE_CXXFLAGS", switch)
    rng = np.random.default_rng(0)
    x, start = (rng.standard_normal(1000).astype(DTYPES[dtype]) for _ in range(2))
    expected = (start.astype(np.float32) + np.float32(0.3) * x.astype(np.float32)).astype(DTYPES[dtype])
    for order in ORDERS:
        y = start.copy()
        with runner.thread_schedule(order):
            words(dtype, check).launch("axpy", (4,), (256,), [x, y, 0.3, len(x)])
        assert np.array_equal(y, expected)


@pytest.mark.parametrize("switch", ["", "-DCPU_UCONTEXT"])
def test_both_switches_meet_at_barriers_and_report(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACLE_CXXFLAGS", switch)
    for check in (False, True):
        module = runner.load(WORDS.parent / "broken" / "deadlock.cu", "float32", check)
        for order, _ in itertools.product(ORDERS, range(2)):  # the launch after a failure is as good as the first
            x, out = np.ones(128, np.float32), np.zeros(128, np.float32)
            with (
                runner.thread_schedule(order),
                pytest.raises(KernelError, match="no thread of the block can go on: 32 in"),
            ):
                module.launch("broken", (2,), (64,), [out, x, 128])
            module.launch("correct", (2,), (64,), [out, x, 128])
            assert np.array_equal(out, np.where(np.arange(128) % 32 < 16, 32, 0))


def test_every_half_is_widened_and_rounded_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    random_bits = rng.integers(0, 2**32, 300_000, np.uint64).astype(np.uint32).view(np.float32)
    usual = rng.standard_normal(100_000).astype(np.float32) * np.exp2(rng.integers(-28, 18, 100_000)).astype(np.float32)
    for dtype in ("float16", "bfloat16"):
        every = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])
        wide = np.empty(2**16, np.float32)
        words(dtype).launch("widen", (64,), (1024,), [wide, every, 2**16])
        assert np.array_equal(wide, every.astype(np.float32), equal_nan=True)

        steps = np.sort(wide[np.isfinite(wide)])
        middles = ((steps[1:].astype(np.float64) + steps[:-1]) / 2).astype(np.float32)  # where rounding must decide
        above, below = (np.nextafter(middles, np.float32(to)) for to in (np.inf, -np.inf))
        x = np.concatenate([random_bits, usual, steps, middles, above, below])
        narrow = np.empty(len(x), DTYPES[dtype])
        words(dtype).launch("narrow", (-(-len(x) // 1024),), (1024,), [narrow, x, len(x)])
        with np.errstate(over="ignore", invalid="ignore"):
            expected = x.astype(DTYPES[dtype])
        known = ~np.isnan(x)
        assert np.array_equal(narrow[known].view(np.uint16), expected[known].view(np.uint16))
        assert np.isnan(narrow[~known].astype(np.float32)).all()


def test_scalars_arrive_as_they_are() -> None:
    out = np.zeros(5, np.float32)
    words().launch("scalars", (1,), (1,), [out, -7, 3 << 32, np.float32(0.1), 2**32 - 1, None])
    assert out.tolist() == [-7, 3, np.float32(0.1), 2**16 - 1, 1]


@every_build
def test_grid_and_block_have_three_dimensions_each(check: bool) -> None:
    grid, block = (3, 4, 5), (2, 8, 4)
    seen = {}
    for order in ORDERS:
        out, turns, ticket = np.full(60 * 64, -1, np.int32), np.full(60, -1, np.int32), np.zeros(1, np.int32)
        with runner.thread_schedule(order):
            words(check=check).launch("places", grid, block, [out, turns, ticket])
        assert np.array_equal(out, np.arange(60 * 64)) and np.array_equal(np.sort(turns), np.arange(60))
        seen[order] = turns.tolist()
    assert seen["forward"] == list(range(60)) and seen["reverse"] == seen["forward"][::-1]
    assert len({tuple(turns) for turns in seen.values()}) == len(ORDERS)


def test_the_order_of_threads() -> None:
    first = {}
    for order in ["forward", "reverse", *range(8)]:
        out = np.full(1, -1, np.int32)
        with runner.thread_schedule(order):
            words().launch("first_thread", (1,), (256,), [out])
            again = np.full(1, -1, np.int32)
            words().launch("first_thread", (1,), (256,), [again])
        assert out == again  # a seed is an order, and the same one every time
        first[order] = int(out[0])
    assert first["forward"] == 0 and first["reverse"] == 255 and len(set(first.values())) > 5


@every_build
@pytest.mark.parametrize("order", ORDERS)
def test_shuffles(order: Schedule, check: bool) -> None:
    """What the CUDA guide says: a lane outside this part of the warp gives the lane's own value."""
    x = np.random.default_rng(0).integers(-999, 999, 64).astype(np.int32)
    lane = np.arange(64)
    for width, argument in itertools.product([32, 16, 4, 1], [0, 1, 3, 15]):
        first = lane // width * width
        expected = [
            first + argument % width,
            np.where(lane ^ argument < first + width, lane ^ argument, lane),
            np.where(lane - argument >= first, lane - argument, lane),
            np.where(lane + argument < first + width, lane + argument, lane),
        ]
        out = np.empty((4, 64), np.int32)
        with runner.thread_schedule(order):
            words(check=check).launch("shuffles", (1,), (64,), [out, x, argument, width])
        assert np.array_equal(out, x[np.array(expected)])


@every_build
@pytest.mark.parametrize("order", ORDERS)
def test_votes_masks_and_atomics(order: Schedule, check: bool) -> None:
    rng = np.random.default_rng(0)
    with runner.thread_schedule(order):
        for likely in (0.0, 0.5, 1.0):
            x = (rng.random(64) < likely).astype(np.int32) * 3
            out = np.empty((3, 64), np.uint32)
            words(check=check).launch("votes", (1,), (64,), [out, x])
            warps = x.reshape(2, 32) != 0
            ballot = (warps * (1 << np.arange(32, dtype=np.uint64))).sum(1)
            for row, expected in zip(out, (ballot, warps.any(1), warps.all(1)), strict=True):
                assert np.array_equal(row, np.repeat(expected, 32))

        x, out = rng.integers(-99, 99, 64).astype(np.int32), np.empty(64, np.int32)
        words(check=check).launch("halves", (1,), (64,), [out, x])
        assert np.array_equal(out, np.repeat(x.reshape(2, 32).sum(1), 32))

        x, results, total = (
            rng.integers(1, 99, 256).astype(np.int32),
            np.array([0, 0, 99, 0, -1], np.int32),
            np.zeros(1),
        )
        total = total.astype(np.float32)
        words(check=check).launch("atomics", (4,), (64,), [results, total, x])
        bits = [np.bitwise_or.reduce(x), np.bitwise_and.reduce(x)]
        assert results.tolist() == [x.sum(), x.max(), x.min(), *bits] and total[0] == x.sum()


@every_build
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensor_cores(dtype: str, check: bool) -> None:
    rng = np.random.default_rng(0)
    for (m, n), by_columns in itertools.product([(16, 16), (32, 8), (8, 32)], [0, 1]):
        a, b = rng.standard_normal((m, 16)).astype(DTYPES[dtype]), rng.standard_normal((16, n)).astype(DTYPES[dtype])
        expected = 2 * (a.astype(np.float32) @ b.astype(np.float32) + 1)
        out = np.empty((m, n), np.float32)
        if by_columns:
            a, b, out = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), out.reshape(n, m)
        module = runner.load(WORDS.parent / "words_tensor_cores.cu", dtype, check)
        module.launch(f"multiply_{m}_{n}", (1,), (32,), [out, a, b, by_columns])
        assert np.abs((out.T if by_columns else out) - expected).max() < 1e-5


def test_traffic_is_counted() -> None:
    x, out = np.ones(32, np.float16), np.zeros(96, np.float32)
    moved = words("float16", check=True).launch("read_twice", (3,), (32,), [out, x])
    assert moved == {
        "out": runner.Traffic(stored=384, distinct_stored=384),
        "x": runner.Traffic(loaded=2 * 3 * 64, distinct_loaded=64),
        "shared": runner.Traffic(loaded=384, stored=384, distinct_loaded=128, distinct_stored=128),
    }
    assert words("float16").launch("read_twice", (3,), (32,), [out, x]) is None


# ---- what a launch refuses ------------------------------------------------------------------------------------------


X, Y = np.ones(8, np.float32), np.zeros(8, np.float32)
READ_ONLY = np.zeros(8, np.float32)
READ_ONLY.flags.writeable = False
GOOD: dict[str, Any] = {"name": "axpy", "grid": (1,), "block": (8,), "args": [X, Y, 1.0, 8], "smem": 0}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": "saxpy"}, "words.cu has no kernel 'saxpy' for float32; it has axpy, narrow"),
    ({"args": [X, Y, 1.0]}, r"axpy takes 4 arguments \(x, y, s, n\), not 3"),
    ({"args": [X, Y, 1.0, 8, 9]}, "axpy takes 4 arguments .* not 5"),
    ({"args": [X.astype(np.float16), Y, 1.0, 8]}, "axpy, x: an array of float32 wanted, not of float16"),
    ({"args": [X, np.zeros(8), 1.0, 8]}, "axpy, y: an array of float32 wanted, not of float64"),
    ({"args": [np.ones(16, np.float32)[::2], Y, 1.0, 8]}, r"axpy, x: the array is not contiguous .*strides \(8,\)"),
    ({"args": [[1.0], Y, 1.0, 8]}, r"axpy, x: numpy.ndarray wanted, not \[1.0\]"),
    ({"args": [X, READ_ONLY, 1.0, 8]}, "axpy, y: the kernel writes to it, and the array is read-only"),
    ({"args": [X, Y, 1, 8]}, r"axpy, s: a number of type float32 wanted, not 1 \(int\)"),
    ({"args": [X, Y, 1.0, 8.0]}, r"axpy, n: a number of type int32 wanted, not 8.0 \(float\)"),
    ({"args": [X, Y, 1.0, True]}, "axpy, n: a number of type int32 wanted, not True"),
    ({"args": [X, Y, 1.0, 2**31]}, "axpy, n: 2147483648 does not fit into int32"),
    ({"args": [X, Y, X, 8]}, "axpy, s: a number of type float32 wanted, not array"),
    ({"block": (2048,)}, r"axpy: block \(2048,\): at most \(1024, 1024, 64\)"),
    ({"block": (64, 32)}, "axpy: a block of 2048 threads; 1 to 1024 are possible"),
    ({"block": (0,)}, "axpy: a block of 0 threads"),
    ({"grid": (1, 70000)}, r"axpy: grid \(1, 70000\): at most"),
    ({"grid": (1, 1, 1, 1)}, "axpy: grid"),
    ({"grid": (-1,)}, "axpy: grid"),
    ({"smem": 228 * 1024}, "axpy: 233472 bytes of shared memory; 0 to 232448 are possible"),
    ({"smem": -1}, "axpy: -1 bytes of shared memory"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_wrong_launch_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoracleError, match=message) as caught:
        words().launch(**(GOOD | change))
    assert "\n" not in str(caught.value)


def test_an_empty_grid_launches_nothing() -> None:
    y = np.zeros(8, np.float32)
    assert words().launch("axpy", (0,), (8,), [X, y, 1.0, 8]) is None and not y.any()
    words().launch("axpy", (1,), (8,), [np.array(X), y, 1.0, np.int64(8)])
    assert y.all()


def test_a_read_only_array_may_be_read() -> None:
    y = np.zeros(8, np.float32)
    words().launch("axpy", (1,), (8,), [READ_ONLY, y, 1.0, 8])


def test_a_file_is_looked_for_in_kernels_and_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.cu", "lora.cu"):
        (tmp_path / name).write_text('extern "C" __global__ void mine(int n) {}\n')
    assert list(runner.load("mine.cu", "float32").kernels) == ["mine"]
    assert "lora_shrink_v1" in runner.load("lora.cu", "float32").kernels
    for theirs in ("./lora.cu", Path("lora.cu"), tmp_path / "lora.cu"):
        assert runner_path(theirs) == tmp_path / "lora.cu"


def runner_path(file: str | Path) -> Path:
    return runner.load(file, "float32").path.resolve()


def test_what_load_refuses() -> None:
    with pytest.raises(LoracleError, match=r"nothing.cu: no such file, nor is it in .*kernels$"):
        runner.load("nothing.cu", "float32")
    for dtype in ("float64", "float16/int8", ""):
        with pytest.raises(LoracleError, match="the kernels know no dtype"):
            runner.load(WORDS, dtype)
    with (
        pytest.raises(LoracleError, match="'sideways': 'forward', 'reverse' or the seed"),
        runner.thread_schedule("sideways"),
    ):
        pass


def test_parameters_are_read_from_the_source() -> None:
    source = """
    // __global__ void in_a_comment(int a) {
    /* extern "C" __global__ void nor_this(int a) { */
    extern "C" __global__ void k(const DTYPE* __restrict__ a,   // the input
        float *b, DTYPE const *c, CACHE_DTYPE *d, unsigned long long e, const int n) {
    extern "C" __global__ void nothing() {
    __global__ void declared_only(int a);
    """
    found = parameters(source, "bfloat16/float32")
    assert list(found) == ["k", "nothing"] and found["nothing"] == []
    assert [(p.name, p.letter, p.pointer, p.written) for p in found["k"]] == [
        ("a", "b", True, False),
        ("b", "f", True, True),
        ("c", "b", True, False),
        ("d", "f", True, True),
        ("e", "Q", False, False),
        ("n", "i", False, False),
    ]
    for wrong in ("Lora x", "DTYPE x", "bool flag", "double d", "char *text"):
        with pytest.raises(KernelError, match="no pointer, int, long long or float"):
            parameters(f"__global__ void k({wrong}) {{", "float16")


# ---- builds ---------------------------------------------------------------------------------------------------------


def test_a_kernel_that_does_not_compile(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.cu"
    for line in (
        "int i = nonsense;",
        "__activemask();",
        "__half a, b; float c = a * b;",
        "long long l; atomicAdd(&l, 1);",
    ):
        wrong.write_text(f'extern "C" __global__ void k(int n) {{\n    {line}\n}}\n')
        with pytest.raises(KernelError, match=r"wrong.cu:2:") as caught:
            runner.load(wrong, "float32")
        assert caught.value.kind == "does not compile"
        os.utime(wrong, (0, caught.value.line + len(line)))  # a change that the clock is too coarse to show


def test_a_build_is_found_again(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, header = tmp_path / "k.cu", tmp_path / "value.cuh"
    source.write_text('#include "value.cuh"\nextern "C" __global__ void k(int *out) { *out = VALUE; }\n')

    def value() -> int:
        runner._load.cache_clear()  # as in a new process
        out = np.zeros(1, np.int32)
        runner.load(source, "float32").launch("k", (1,), (1,), [out])
        return int(out[0])

    header.write_text("#define VALUE 1\n")
    assert value() == 1
    made = sorted(empty_cache.iterdir())
    with monkeypatch.context() as m:
        m.setattr(subprocess, "run", None)
        assert value() == 1  # without a compiler
    assert sorted(empty_cache.iterdir()) == made

    header.write_text("#define VALUE 2\n")
    old = next(empty_cache.glob("*.so"))
    assert value() == 2
    assert len(list(empty_cache.glob("*.so"))) == 2 and not list(empty_cache.glob("*.*.*"))

    os.utime(old, (0, 0))
    header.write_text("#define VALUE 3\n")
    assert value() == 3 and not old.exists()  # a new build takes the chance to remove those of long ago


def test_processes_that_need_the_same_build(empty_cache: Path, tmp_path: Path) -> None:
    """All of them get a whole library, and one of them has built it."""
    source, log = tmp_path / "k.cu", tmp_path / "log"
    source.write_text('extern "C" __global__ void k(int *out) { *out = 7; }\n')
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *-shared*) echo built >>{log};; esac\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    if not shutil.which("g++"):
        pytest.skip("no g++")
    script = (
        "import numpy as np; from refimpl.cuda import runner; out = np.zeros(1, np.int32);"
        f"runner.load({str(source)!r}, 'float32').launch('k', (1,), (1,), [out]); assert out == 7"
    )
    env = {**os.environ, "CXX": str(compiler), "PYTHONPATH": str(Path(runner.__file__).parents[3])}
    processes = [subprocess.Popen([sys.executable, "-c", script], env=env) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert log.read_text() == "built\n"


def test_no_home_to_write_to(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = runner_cpu.cache_folder()
    assert folder.is_dir() and tmp_path not in folder.parents


def test_threads_take_turns() -> None:
    def one(seed: int) -> bool:
        x, out = np.random.default_rng(seed).integers(-9, 9, 64).astype(np.int32), np.empty(64, np.int32)
        for _ in range(20):
            words().launch("halves", (1,), (64,), [out, x])
        return np.array_equal(out, np.repeat(x.reshape(2, 32).sum(1), 32))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(8)))
    assert threading.active_count() >= 1


def test_no_compiler(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda command: None)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(DeviceError, match=r"no C\+\+ compiler .* pip install 'loracle\[cpu-kernels\]'"):
        words()


def test_the_compiler_of_the_ziglang_wheel(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang", reason="the extra cpu-kernels is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # keep what it builds: it takes seconds
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda command: None)
    assert "ziglang" in runner_cpu.compiler()
    x = np.arange(64, dtype=np.int32)
    for check in (False, True):
        out = np.empty(64, np.int32)
        words("float16", check).launch("halves", (1,), (64,), [out, x])
        assert np.array_equal(out, np.repeat(x.reshape(2, 32).sum(1), 32))
    race = runner.load(WORDS.parent / "broken" / "missing_atomic.cu", "float32", check=True)
    with pytest.raises(KernelError, match=r"^missing_atomic.cu:11: broken, block \(1, 0, 0\), .*race"):
        race.launch(
            "broken", (2,), (64,), [np.zeros(128, np.float32), np.ones(128, np.float32), np.zeros(1, np.float32), 1]
        )


def test_not_under_windows(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(DeviceError, match="on Windows use WSL"):
        words()


# ---- a kernel that crashes ------------------------------------------------------------------------------------------

CRASHES = """
extern "C" __global__ void far(int *y, int n) { if (threadIdx.x == 3) y[100000000000ll] = n; }
extern "C" __global__ void null(int *y, int n) { *(volatile int *)0 = n; }
extern "C" __global__ void divides(int *y, int n) { y[0] = y[1] / n; }
extern "C" __global__ void fills_its_stack(int *y, int n) {
    volatile char mine[270000];
    for (int i = 269999; i >= 0; i -= 1000) mine[i] = n;
    y[0] = mine[n];
}
extern "C" __global__ void right(int *y, int n) { y[threadIdx.x] = threadIdx.x + n; }
"""
SAYS = {
    "far": ("2", "segmentation fault: it reads or writes memory that nobody gave it"),
    "null": ("3", "segmentation fault"),
    "divides": ("4", "it divides by zero"),
    "fills_its_stack": ("[678]", "a thread's own variables and calls take more than 256 kB"),
}


@pytest.mark.parametrize("switch", ["", "-DCPU_UCONTEXT"])
def test_a_crash_is_one_line_that_says_to_check_and_python_lives(
    switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACLE_CXXFLAGS", switch)
    (tmp_path / "crashes.cu").write_text(CRASHES)
    module = runner.load(tmp_path / "crashes.cu", "float32")
    y = np.zeros(64, np.int32)
    for _, (name, (line, says)) in itertools.product(range(2), SAYS.items()):
        if name == "divides" and platform.machine() != "x86_64":
            continue  # elsewhere 1 / 0 is 0, and no crash
        with pytest.raises(
            KernelError, match=rf"^crashes.cu:{line}: {name}, block \(0, 0, 0\), thread .*{says}"
        ) as caught:
            module.launch(name, (1,), (64,), [y, 0])
        assert caught.value.kind == "crash"
        assert str(caught.value).endswith("Run it under the checker, which says more: LORACLE_CHECK_KERNELS=1")
        module.launch("right", (1,), (64,), [y, 5])
        assert np.array_equal(y, np.arange(5, 69))
    assert signal.getsignal(signal.SIGFPE) == signal.SIG_DFL


def test_a_crash_outside_of_a_launch_is_nobodys_kernel(tmp_path: Path) -> None:
    script = (
        "import ctypes, numpy as np; from refimpl.cuda import runner; y = np.zeros(64, np.int32);"
        f"runner.load({str(WORDS)!r}, 'float32').launch('places', (1,), (1,), [y, y.copy(), y.copy()]);"
        "ctypes.string_at(0)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(runner.__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGSEGV and "checker" not in done.stderr


def test_a_variable_puts_a_launch_under_the_checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crashes.cu").write_text(CRASHES)
    monkeypatch.setenv("LORACLE_CHECK_KERNELS", "1")
    with pytest.raises(KernelError, match=r"crashes.cu:2: far.* out of bounds"):
        runner.load(tmp_path / "crashes.cu", "float32").launch("far", (1,), (64,), [np.zeros(64, np.int32), 0])


# ---- other machines -------------------------------------------------------------------------------------------------


def other_compilers() -> list[tuple[str, str]]:
    """The ways to run that a Mac has, as far as this machine can."""
    ways = [("g++", "-DCPU_UCONTEXT")]
    if shutil.which("clang++"):
        ways.append(("clang++", "-femulated-tls -DCPU_EMUTLS"))
    return ways


@pytest.mark.parametrize(("compiler", "flags"), other_compilers())
def test_shared_memory_and_its_checks_are_the_same_however_it_is_built(
    compiler: str, flags: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With __shared__ variables where the loader puts them, and where kernels/cpu/image.h does, as on a Mac."""
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # keep what is built: it takes seconds
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("LORACLE_CXXFLAGS", flags)
    broken = WORDS.parent / "broken"
    x = np.arange(128, dtype=np.float32)
    for name, kind, line in [
        ("missing_syncthreads", "race|uninitialised", 11),
        ("uninitialised_shared", "uninitialised", 13),
        ("dynamic_shared_overrun", "out of bounds", 11),
        ("static_shared_overrun", "out of bounds", 12),
    ]:
        module, smem = runner.load(broken / f"{name}.cu", "float32", check=True), 256 if "dynamic" in name else 0
        with pytest.raises(KernelError, match=rf"^{name}.cu:\d+: broken, .* ({kind}): ") as caught:
            module.launch("broken", (2,), (64,), [np.zeros(128, np.float32), x, 128], smem)
        assert line <= caught.value.line <= line + 2
        module.launch("correct", (2,), (64,), [np.zeros(128, np.float32), x, 128], smem)
    moved = words("float16", check=True).launch(
        "read_twice", (3,), (32,), [np.zeros(96, np.float32), x[:32].astype(np.float16)]
    )
    assert moved is not None and moved["shared"].distinct_loaded == 128


@pytest.mark.parametrize("target", ["aarch64-macos", "x86_64-macos"])
@every_build
def test_it_compiles_and_links_for_a_mac(target: str, check: bool, tmp_path: Path) -> None:
    """Nobody runs it here; a line table is read from its object file all the same."""
    pytest.importorskip("ziglang", reason="the extra cpu-kernels is not installed")
    zig, cpu = [sys.executable, "-m", "ziglang"], runner.kernels_folder() / "cpu"
    every, checks = runner_cpu.compiler_flags(False, target.partition("-")[0].replace("aarch", "arm"), "darwin")
    (tmp_path / "words.cpp").write_text(
        f'#include "cuda_on_cpu.h"\n#include "{WORDS}"\ncpu::Kernel cpu_kernels[] = {{CPU_KERNEL(read_twice)}};\n'
    )
    sources = [tmp_path / "words.cpp", cpu / "machine.cpp", *[cpu / "memcheck.cpp"] * check]
    defines = ["-DDTYPE=float", "-DCACHE_DTYPE=float", *["-DCPU_CHECK"] * check, f"-I{cpu}", f"-I{cpu.parent}"]
    for i, source in enumerate(sources):
        command = [*zig, "c++", "-target", target, *every, *defines, *(checks if check and i == 0 else [])]
        subprocess.run([*command, "-c", str(source), "-o", str(tmp_path / f"{source.stem}.o")], check=True)
    objects = [str(tmp_path / f"{source.stem}.o") for source in sources]
    subprocess.run(
        [*zig, "cc", "-target", target, "-shared", *objects, "-o", str(tmp_path / "words.dylib")], check=True
    )
    rows = line_table.rows(tmp_path / "words.o")
    assert {"words.cu", "cuda_on_cpu.h"} <= {Path(file).name for _, file, _ in rows}
    assert max(line for _, file, line in rows if file.endswith("words.cu")) <= WORDS.read_text().count("\n")


EMULATED = ["aarch64-linux-gnu-g++", "qemu-aarch64"]


@pytest.mark.parametrize("switch", ["-UCPU_UCONTEXT", "-DCPU_UCONTEXT"])
@pytest.mark.parametrize("words", [["g++"], EMULATED], ids=["here", "aarch64"])
def test_the_machine_runs_without_python_and_on_another_processor(
    words: list[str], switch: str, tmp_path: Path
) -> None:
    """The assembly for ARM, which this suite can only emulate: apt-get install g++-aarch64-linux-gnu qemu-user."""
    compiler, *emulator = words
    if not all(shutil.which(word) for word in words) or sys.platform == "darwin":
        pytest.skip(f"no {' or '.join(words)}")
    cpu, program = runner.kernels_folder() / "cpu", tmp_path / "alone"
    flags, _ = runner_cpu.compiler_flags(True, "other", "linux")
    sources = [str(WORDS.parent / "alone.cpp"), str(cpu / "machine.cpp")]
    subprocess.run([compiler, *flags, switch, f"-I{cpu}", *sources, "-o", str(program)], check=True)
    command = [*emulator, *["-L", "/usr/aarch64-linux-gnu"] * bool(emulator), str(program)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "0 wrong\n"


def test_the_flags_of_each_system() -> None:
    mac, _ = runner_cpu.compiler_flags(False, "arm64", "darwin")
    linux, _ = runner_cpu.compiler_flags(True, "x86_64", "linux")
    assert "-femulated-tls" in mac and not {"-fcf-protection=none", "-mtls-dialect=gnu2"} & set(mac)
    assert "-femulated-tls" not in linux and {"-fcf-protection=none", "-mtls-dialect=gnu2"} <= set(linux)


@pytest.mark.skipif(not shutil.which("addr2line"), reason="no addr2line")
def test_lines_are_those_that_addr2line_finds() -> None:
    module = words("float16", check=True)
    assert isinstance(module, runner_cpu.CPUModule)
    rows = line_table.rows(module.library)
    code = [(address, f"{Path(file).name}:{line}") for address, file, line in rows if line]
    last = dict(code)  # of the rows with one address, the last one counts
    ends = {address for address, _, line in rows if not line}  # a row of no length, after the code
    picked = sorted(set(last) - ends)[:: max(1, len(last) // 200)]
    command = ["addr2line", "-e", str(module.library), *map(hex, picked)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert [last[address] for address in picked] == [f.partition(" ")[0].rpartition("/")[2] for f in found if f]


# ---- where the kernels run ------------------------------------------------------------------------------------------


class FakeArray(np.ndarray):
    """A CuPy array: numpy's, with an address where CuPy has it."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return types.SimpleNamespace(ptr=self.ctypes.data)


class FakeCupy(types.ModuleType):
    """As much of CuPy as the runner asks for, on a GPU of our choice."""

    class CUDARuntimeError(RuntimeError):
        pass

    class CUDADriverError(RuntimeError):
        pass

    class CompileException(Exception):
        pass

    def __init__(self, capability: str = "90", driver: int = 13000, devices: int | Exception = 1) -> None:
        super().__init__("cupy")
        self.launches: list[tuple] = []
        self.compiled: list[tuple] = []
        self.fails: dict[str, Exception] = {}
        self.ndarray = FakeArray
        self.RawModule = self.raw_module
        device = types.SimpleNamespace(
            compute_capability=capability, attributes={"MaxSharedMemoryPerBlockOptin": 101376}
        )

        def count() -> int:
            if isinstance(devices, Exception):
                raise devices
            return devices

        self.cuda = types.SimpleNamespace(
            Device=lambda: device,
            runtime=types.SimpleNamespace(
                CUDARuntimeError=self.CUDARuntimeError,
                getDeviceCount=count,
                driverGetVersion=lambda: driver,
                runtimeGetVersion=lambda: 13020,
            ),
            driver=types.SimpleNamespace(CUDADriverError=self.CUDADriverError),
            compiler=types.SimpleNamespace(CompileException=self.CompileException),
            nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 2)),
            get_current_stream=lambda: types.SimpleNamespace(synchronize=lambda: self.fail("synchronize")),
        )

    def fail(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what]

    def raw_module(self, code: str, options: tuple[str, ...]) -> Any:
        self.compiled.append((code, options))

        def function(name: str) -> Any:
            def kernel(grid: Any, block: Any, args: Any, shared_mem: int) -> None:
                self.launches.append(
                    (name, grid, block, args, shared_mem, getattr(kernel, "max_dynamic_shared_size_bytes", 0))
                )
                self.fail(name)

            return kernel

        return types.SimpleNamespace(compile=lambda: self.fail("compile"), get_function=function)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Installs a FakeCupy and makes it the world."""

    def install(**how: Any) -> FakeCupy:
        cupy = FakeCupy(**how)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setenv("LORACLE_KERNELS", "gpu")
        forget()
        return cupy

    def forget() -> None:
        for function in (device_namespace, runner._load, runner._detected_device):
            function.cache_clear()
        runner_gpu._launched.clear()

    yield install
    forget()


def on_gpu(x: np.ndarray) -> np.ndarray:
    return x.view(FakeArray)


def test_the_same_line_on_a_gpu(fake: Any) -> None:
    cupy = fake()
    x, y = on_gpu(np.ones(8, np.float16)), on_gpu(np.zeros(8, np.float16))
    runner.load(WORDS, "float16").launch("axpy", (2,), (4, 2), [x, y, 0.5, 8], smem=64)
    runner.load(WORDS, "float16").launch("axpy", (2,), (4, 2), [None, y, np.float64(0.5), np.int64(8)], smem=50_000)
    ((_, options),) = cupy.compiled  # once
    assert {"-std=c++17", "-DDTYPE=__half", "-DCACHE_DTYPE=__half"} <= set(options)
    (name, grid, block, args, smem, most), (_, _, _, (null, *_), _, most_of_second) = cupy.launches
    assert (name, grid, block, smem, most, most_of_second) == ("axpy", (2, 1, 1), (4, 2, 1), 64, 0, 50_000)
    assert args == (x.ctypes.data, y.ctypes.data, 0.5, 8) and null == 0
    assert [type(argument) for argument in args] == [np.uint64, np.uint64, np.float32, np.int32]


def test_what_a_gpu_refuses(fake: Any) -> None:
    fake(capability="75")
    x = on_gpu(np.ones(8, np.float32))
    with pytest.raises(DeviceError, match=r"bfloat16 kernels need compute capability 8.0; this GPU has 7.5"):
        runner.load(WORDS, "bfloat16")
    module = runner.load(WORDS, "float32")
    with pytest.raises(DeviceError, match="axpy: 200000 bytes of shared memory; this GPU has 101376"):
        module.launch("axpy", (1,), (8,), [x, x, 1.0, 8], smem=200_000)
    with pytest.raises(LoracleError, match=r"axpy, x: .*FakeArray wanted, not array"):
        module.launch("axpy", (1,), (8,), [X, x, 1.0, 8])
    with pytest.raises(LoracleError, match="axpy, y: the array is not contiguous"):
        module.launch("axpy", (1,), (4,), [x, on_gpu(np.ones(8, np.float32))[::2], 1.0, 4])


def test_errors_of_cuda_carry_the_names_of_the_kernels(fake: Any) -> None:
    cupy = fake()
    x, n = on_gpu(np.ones(8, np.float32)), 8
    module = runner.load(WORDS, "float32")
    module.launch("axpy", (1,), (8,), [x, x, 1.0, n])
    cupy.fails = {"widen": cupy.CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS")}
    message = r"widen \(words.cu\), grid \(1, 1, 1\), .*CUDA_ERROR_ILLEGAL_ADDRESS; launched before it: axpy$"
    with pytest.raises(KernelError, match=message):
        module.launch("widen", (1,), (8,), [x, x, n])

    cupy.fails = {"synchronize": cupy.CUDARuntimeError("cudaErrorIllegalAddress")}
    with pytest.raises(KernelError, match=r"waiting for the GPU: cudaErrorIllegalAddress; launched before it: axpy$"):
        runner.synchronize()
    checked = runner.load(WORDS, "float32", check=True)  # waits after every launch: the error is the kernel's own
    with pytest.raises(KernelError, match=r"launched before it: axpy, narrow$"):
        checked.launch("narrow", (1,), (8,), [x, x, n])
    cupy.fails = {}
    runner.synchronize()
    cupy.fails = {"compile": cupy.CompileException("words.cu(1): error")}
    with pytest.raises(KernelError, match=r"words.cu for float16: words.cu\(1\): error"):
        runner.load(WORDS, "float16")


def test_no_gpu(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    none = FakeCupy.CUDARuntimeError("cudaErrorInsufficientDriver")
    fake(driver=0, devices=none)
    with pytest.raises(DeviceError, match="no NVIDIA driver; LORACLE_KERNELS=cpu"):
        runner.load(WORDS, "float32")
    fake(driver=12040, devices=none)
    with pytest.raises(
        DeviceError, match=r"driver knows CUDA 12.4, CuPy wants 13.2: .* pip install 'loracle\[cuda12\]'"
    ):
        runner.load(WORDS, "float32")
    fake(devices=FakeCupy.CUDARuntimeError("cudaErrorNoDevice"))
    with pytest.raises(DeviceError, match="CuPy finds no GPU"):
        runner.load(WORDS, "float32")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="needs CuPy"):
        runner.load(WORDS, "float32")


def test_which_device(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake()
    monkeypatch.delenv("LORACLE_KERNELS")
    assert runner.device() == "gpu"
    fake(devices=FakeCupy.CUDARuntimeError("cudaErrorNoDevice"))
    monkeypatch.delenv("LORACLE_KERNELS")
    assert runner.device() == "cpu"
    monkeypatch.setenv("LORACLE_KERNELS", "tpu")
    with pytest.raises(DeviceError, match="LORACLE_KERNELS=tpu: gpu or cpu wanted"):
        runner.device()
    monkeypatch.setenv("LORACLE_KERNELS", "cpu")
    assert runner.device() == "cpu"
    runner.synchronize()


@pytest.mark.parametrize("name", ["KERNELS", "CXXFLAGS"])
def test_the_former_name_of_a_setting_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(f"LORACLE_{name}", raising=False)
    assert setting(name) == ""
    monkeypatch.setenv(f"REFIMPL_{name}", "cpu")
    with pytest.raises(DeviceError, match=f"^REFIMPL_{name} is called LORACLE_{name} now$"):
        setting(name)
    monkeypatch.setenv(f"LORACLE_{name}", "gpu")
    assert setting(name) == "gpu"


WHEELS = {
    12: {"cuda_runtime": ("cuda_fp16.h", "cuda_bf16.h", "mma.h"), "cuda_nvcc": ("crt/mma.h",)},
    13: {"cu13": ("cuda_fp16.h", "cuda_bf16.h", "mma.h", "crt/mma.h")},
}


@pytest.mark.parametrize("major", list(WHEELS))
def test_the_headers_of_cuda_are_found_where_pip_puts_them(
    major: int, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them or none, and only those of this version; NVRTC gets the folders."""
    monkeypatch.setattr(cuda_headers, "nvidia_folders", lambda: [tmp_path])
    folders = []
    for part, names in WHEELS[major].items():
        assert include_folders(major) == []
        folders.append(tmp_path / part / "include")
        for name in names:
            (folders[-1] / name).parent.mkdir(parents=True, exist_ok=True)
            (folders[-1] / name).touch()
    assert include_folders(major) == folders
    assert include_folders(25 - major) == [] == include_folders(11)
    cupy = fake()
    cupy.cuda.nvrtc = types.SimpleNamespace(getVersion=lambda: (major, 2))
    runner.load(WORDS, "float16")
    ((_, options),) = cupy.compiled
    assert {f"-I{folder}" for folder in folders} <= set(options)
    (folders[-1] / WHEELS[major][part][-1]).unlink()
    assert include_folders(major) == []


def test_nvidia_is_a_folder_of_site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for site in ("one", "other"):
        (tmp_path / site / "nvidia").mkdir(parents=True)
        monkeypatch.syspath_prepend(tmp_path / site)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert cuda_headers.nvidia_folders()[:2] == [tmp_path / site / "nvidia" for site in ("other", "one")]
