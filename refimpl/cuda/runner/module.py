"""What a CPU and a GPU have in common: one .cu for one dtype, and a launch whose arguments are checked first."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import DeviceError, LoracleError
from ..parameters import Parameter, parameters, types_of

Schedule = str | int  # "forward", "reverse", or the seed of a shuffle

MAX_SHARED = 227 * 1024  # bytes per block; an H100 has as many
MAX_BLOCK, MAX_GRID = (1024, 1024, 64), (2**31 - 1, 65535, 65535)


@dataclass(frozen=True)
class Traffic:
    """Bytes that one launch moved to and from one argument; loaded == distinct_loaded: each byte was read once."""

    loaded: int = 0
    stored: int = 0
    distinct_loaded: int = 0
    distinct_stored: int = 0


def kernels_folder() -> Path:
    """Return LORACLE_KERNELS_FOLDER, kernels/ of the checkout, or its copy inside an installed package."""
    if chosen := setting("KERNELS_FOLDER"):
        folder = Path(chosen).absolute()
        if not (folder / "cpu" / "cuda_on_cpu.h").exists():
            raise DeviceError(f"LORACLE_KERNELS_FOLDER={chosen}: no copy of kernels/, it has no cpu/cuda_on_cpu.h")
        return folder
    return _kernels_of_package()


@lru_cache
def _kernels_of_package() -> Path:
    package = Path(__file__).parents[2]
    for folder in (package / "_kernels", package.parent / "kernels"):
        if (folder / "cpu" / "cuda_on_cpu.h").exists():
            return folder
    raise DeviceError(f"no kernels in {package / '_kernels'} nor in {package.parent / 'kernels'}: install loracle anew")


def headers(path: Path) -> list[Path]:
    """Return every header of ours that a .cu can include."""
    folders = (path.parent, kernels_folder(), kernels_folder() / "cpu")
    return [header for folder in folders for header in sorted([*folder.glob("*.h"), *folder.glob("*.cuh")])]


def setting(name: str) -> str:
    """Return the environment variable LORACLE_<name>, or "". DeviceError where only its former name is set."""
    new, former = f"LORACLE_{name}", f"REFIMPL_{name}"
    if former in os.environ and new not in os.environ:
        raise DeviceError(f"{former} is called {new} now")
    return os.environ.get(new, "")


class Module:
    """One .cu, compiled for one dtype. `launch` starts one of its kernels."""

    array_type: Any

    def __init__(self, path: Path, dtype: str) -> None:
        self.path, self.dtype = path, dtype
        self.kernels = parameters(path.read_text(), dtype)
        self.defines = [f"-D{name}={ctype}" for name, ctype in types_of(dtype).items()]

    def parameters_of(self, name: str) -> list[Parameter]:
        """Return the parameters of a kernel. LoracleError for one that there is not."""
        if name not in self.kernels:
            names = ", ".join(self.kernels) or "none"
            raise LoracleError(f"{self.path.name} has no kernel {name!r} for {self.dtype}; it has {names}")
        return self.kernels[name]

    def launch(
        self, name: str, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], smem: int = 0
    ) -> dict[str, Traffic] | None:
        """Run a kernel with `smem` bytes of dynamic shared memory. The checking build returns what each argument moved.

        LoracleError for an argument that the kernel does not take; KernelError for a kernel that is wrong.
        """
        expected = self.parameters_of(name)
        if len(args) != len(expected):
            names = ", ".join(p.name for p in expected)
            raise LoracleError(f"{name} takes {len(expected)} arguments ({names}), not {len(args)}")
        words = [
            p.word(argument, f"{name}, {p.name}", self.array_type) for p, argument in zip(expected, args, strict=True)
        ]
        grid3 = three_dimensions(grid, MAX_GRID, f"{name}: grid")
        block3 = three_dimensions(block, MAX_BLOCK, f"{name}: block")
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


def three_dimensions(sizes: Sequence[int], limits: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Return the sizes of a grid or of a block as three numbers, the missing ones 1. LoracleError beyond the limits."""
    full = (*(int(n) for n in sizes), 1, 1, 1)[:3]
    if len(sizes) > 3 or any(not 0 <= n <= limit for n, limit in zip(full, limits, strict=True)):
        raise LoracleError(f"{where} {tuple(sizes)}: at most {limits}")
    return full


_schedule: ContextVar[Schedule] = ContextVar("schedule", default="forward")


@contextlib.contextmanager
def thread_schedule(schedule: Schedule) -> Iterator[None]:
    """Inside, the CPU runner runs blocks and threads 'forward', in 'reverse', or shuffled by a seed."""
    if schedule not in ("forward", "reverse") and not isinstance(schedule, int):
        raise LoracleError(f"thread schedule {schedule!r}: 'forward', 'reverse' or the seed of a shuffle wanted")
    token = _schedule.set(schedule)
    try:
        yield
    finally:
        _schedule.reset(token)


def current_schedule() -> Schedule:
    """Return the thread schedule that is in force."""
    return _schedule.get()
