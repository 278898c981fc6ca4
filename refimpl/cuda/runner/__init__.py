"""Launches the kernels of kernels/*.cu: on a GPU through CuPy, or on any CPU through kernels/cpu. One line for both:

    module = load("lora.cu", "float16")
    module.launch("bgmv_shrink", grid, block, [x, a, out, np.int32(tokens), 0.5], smem=0)

What an argument must be is read from the kernel's own parameter list and checked before every launch, because nobody
else does: a GPU takes any pointer for any other. A parameter of type DTYPE has the type that the module was loaded
with. An empty grid launches nothing.

REFIMPL_KERNELS=gpu or cpu chooses; without it the kernels run on the GPU if CuPy finds one. runner_gpu.py and
runner_cpu.py are the two worlds behind this file.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...arrays import device_namespace
from ...errors import DeviceError, LoracleError
from ...errors import KernelError as KernelError
from ..parameters import CTYPES as CTYPES
from ..parameters import parameters as parameters
from ..parameters import types_of as types_of

Order = str | int  # "forward", "reverse", or the seed of a shuffle

MAX_SHARED = 227 * 1024  # bytes per block; an H100 has as many
MAX_BLOCK, MAX_GRID = (1024, 1024, 64), (2**31 - 1, 65535, 65535)


@dataclass(frozen=True)
class Traffic:
    """Bytes that one launch moved to and from one argument; loaded == distinct_loaded: each byte was read once."""

    loaded: int = 0
    stored: int = 0
    distinct_loaded: int = 0
    distinct_stored: int = 0


# ----------------------------------------------------------------------------- what stands in a .cu


@lru_cache
def kernels_folder() -> Path:
    """kernels/ of the checkout, or its copy inside an installed package."""
    package = Path(__file__).parents[2]
    for folder in (package / "_kernels", package.parent / "kernels"):
        if (folder / "cpu" / "cuda_on_cpu.h").exists():
            return folder
    raise DeviceError(f"no kernels in {package / '_kernels'} nor in {package.parent / 'kernels'}: install loracle anew")


def headers(path: Path) -> list[Path]:
    """Every header that a .cu can include."""
    folders = (path.parent, kernels_folder(), kernels_folder() / "cpu")
    return [header for folder in folders for header in sorted([*folder.glob("*.h"), *folder.glob("*.cuh")])]


# ----------------------------------------------------------------------------- load and launch


class Module:
    """One .cu, compiled for one dtype. `launch` starts one of its kernels."""

    array_type: Any

    def __init__(self, path: Path, dtype: str) -> None:
        self.path, self.dtype = path, dtype
        self.kernels = parameters(path.read_text(), dtype)
        self.defines = [f"-D{name}={ctype}" for name, ctype in types_of(dtype).items()]

    def launch(
        self, name: str, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], smem: int = 0
    ) -> dict[str, Traffic] | None:
        """Run a kernel with `smem` bytes of dynamic shared memory. The checking build returns what each argument moved.

        LoracleError for an argument that the kernel does not take; KernelError for a kernel that is wrong.
        """
        if name not in self.kernels:
            has = ", ".join(self.kernels)
            raise LoracleError(f"{self.path.name} has no kernel {name!r} for {self.dtype}; it has {has}")
        wanted = self.kernels[name]
        if len(args) != len(wanted):
            listed = ", ".join(p.name for p in wanted)
            raise LoracleError(f"{name} takes {len(wanted)} arguments ({listed}), not {len(args)}")
        words = [
            p.word(argument, f"{name}, {p.name}", self.array_type) for p, argument in zip(wanted, args, strict=True)
        ]
        grid3, block3 = shape(grid, MAX_GRID, f"{name}: grid"), shape(block, MAX_BLOCK, f"{name}: block")
        threads = block3[0] * block3[1] * block3[2]
        if not 1 <= threads <= 1024:
            raise LoracleError(f"{name}: a block of {threads} threads; 1 to 1024 are possible")
        if not 0 <= smem <= MAX_SHARED:
            raise LoracleError(f"{name}: {smem} bytes of shared memory; 0 to {MAX_SHARED} are possible")
        if 0 in grid3:
            return None
        return self._launch(name, grid3, block3, args, words, smem)

    def _launch(
        self, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], words: list[int], smem: int
    ) -> dict[str, Traffic] | None:
        raise NotImplementedError


def shape(given: Sequence[int], most: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Three numbers, the missing ones 1."""
    full = (*(int(n) for n in given), 1, 1, 1)[:3]
    if len(given) > 3 or any(not 0 <= n <= limit for n, limit in zip(full, most, strict=True)):
        raise LoracleError(f"{where} {tuple(given)}: at most {most}")
    return full


def world() -> str:
    """'gpu' or 'cpu': where the kernels run."""
    chosen = os.environ.get("REFIMPL_KERNELS", "")
    if chosen not in ("", "gpu", "cpu"):
        raise DeviceError(f"REFIMPL_KERNELS={chosen}: gpu or cpu wanted")
    return chosen or _found()


@lru_cache
def _found() -> str:
    try:
        device_namespace("cuda")
    except DeviceError:
        return "cpu"
    return "gpu"


def load(file: str | Path, dtype: str, check: bool = False) -> Module:
    """The kernels of one file (in kernels/, or anywhere by its absolute path), compiled for one dtype; cached.

    check=True: on a CPU the build that finds out-of-bounds and misaligned accesses, races, shared memory that was read
    before it was written, and counts bytes; on a GPU every launch is waited for, so that an error names its kernel.
    """
    types_of(dtype)
    path = kernels_folder() / file
    if not path.exists():
        raise LoracleError(f"{path}: no such file")
    try:
        return _load(path, dtype, check, world(), os.environ.get("REFIMPL_CXXFLAGS", ""), path.stat().st_mtime_ns)
    except KernelError as error:
        raise error.with_traceback(None) from None  # the message has what the compiler says, the build's frames nothing


@lru_cache(maxsize=256)
def _load(path: Path, dtype: str, check: bool, where: str, flags: str, changed: int) -> Module:
    from .cpu import CPUModule
    from .gpu import GPUModule

    return CPUModule(path, dtype, check, flags) if where == "cpu" else GPUModule(path, dtype, check)


def synchronize() -> None:
    """Wait for all launches. KernelError, with the names of the last ones, if one of them failed. On a CPU, nothing."""
    if world() == "gpu":
        from .gpu import wait

        wait()


_scheduling: ContextVar[Order] = ContextVar("scheduling", default="forward")


@contextlib.contextmanager
def order(chosen: Order) -> Iterator[None]:
    """Inside, the CPU runner schedules blocks and threads 'forward', in 'reverse', or shuffled by a seed."""
    if chosen not in ("forward", "reverse") and not isinstance(chosen, int):
        raise LoracleError(f"order {chosen!r}: 'forward', 'reverse' or the seed of a shuffle wanted")
    token = _scheduling.set(chosen)
    try:
        yield
    finally:
        _scheduling.reset(token)


def scheduling() -> Order:
    """The order that is in force."""
    return _scheduling.get()
