"""One launch: arrays as the kernels read them, and the line that starts a kernel, on a GPU or on the CPU runner."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...arrays import Array, namespace
from ...arrays import ceil_div as ceil_div
from ...errors import LoracleError
from .. import runner

ENOUGH_BLOCKS = 256  # two for each multiprocessor of a large GPU; with fewer, work is split further

STORED: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}


def stored(x: Array, dtype: str) -> Array:
    """The numbers of a float32 array as a kernel of this type reads them: contiguous, rounded to nearest even."""
    xp = namespace(x)
    if dtype == "bfloat16":
        bits = xp.ascontiguousarray(x, np.float32).view(np.uint32)
        nearest = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
        return xp.where(xp.isnan(x), np.uint32(0x7FC0), nearest).astype(np.uint16)
    with np.errstate(over="ignore"):  # beyond 65504 a float16 is inf
        return xp.ascontiguousarray(x, STORED[dtype])


def widened(x: Array, dtype: str) -> Array:
    """A kernel's numbers as a float32 array; no copy where they are that already."""
    return (x.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else x.astype(np.float32, copy=False)


class Launch(NamedTuple):
    """One launch under the checker: the kernel, and the bytes that each of its arguments moved."""

    kernel: str
    moved: dict[str, runner.Traffic]

    def __repr__(self) -> str:
        traffic = self.moved.values()
        loaded, written = sum(each.loaded for each in traffic), sum(each.stored for each in traffic)
        return f"{self.kernel}: {loaded:,} bytes read, {written:,} written"


_checked: ContextVar[list[Launch] | None] = ContextVar("checked", default=None)


@contextlib.contextmanager
def checked() -> Iterator[list[Launch]]:
    """Run every launch inside under the checker, and append each to the list that this yields."""
    launches: list[Launch] = []
    token = _checked.set(launches)
    try:
        yield launches
    finally:
        _checked.reset(token)


_recorded: ContextVar[list | None] = ContextVar("recorded", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list]:
    """Inside, every launch is noted down as (kernel, a function that launches it again with the same arguments)."""
    launches: list = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


_planned: ContextVar[list[str] | None] = ContextVar("planned", default=None)


@contextlib.contextmanager
def planned() -> Iterator[list[str]]:
    """Inside, nothing is launched: what would have been is noted by its kernel's name. It needs no compiler."""
    names: list[str] = []
    token = _planned.set(names)
    try:
        yield names
    finally:
        _planned.reset(token)


def launch_kernel(
    file: str | Path,
    dtype: str,
    kernel: str,
    grid: tuple[int, int, int],
    block: int,
    arguments: Mapping[str, Any],
    smem: int = 0,
) -> None:
    """Launch a kernel; each of its parameters gets the argument of the same name. LoracleError where there is none."""
    if (names := _planned.get()) is not None:
        names.append(kernel)
        return
    launches = _checked.get()
    module = runner.load(file, dtype, check=launches is not None or None)
    parameters = module.parameters_of(kernel)
    if strange := [p.name for p in parameters if p.name not in arguments]:
        raise LoracleError(f"{kernel} has a parameter {strange[0]}; a launch has {', '.join(sorted(arguments))}")
    again = partial(module.launch, kernel, grid, (block, 1, 1), [arguments[p.name] for p in parameters], smem)
    moved = again()
    if launches is not None:
        launches.append(Launch(kernel, moved or {}))
    if (noted := _recorded.get()) is not None:
        noted.append((kernel, again))


def empty(xp: Any, shape: Sequence[int], dtype: Any) -> Array:
    """Memory for what a kernel writes, all of it; what it holds before means nothing (the tests fill it with NaN)."""
    return xp.empty(shape, dtype)
