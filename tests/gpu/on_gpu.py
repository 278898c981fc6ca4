"""Tests that were written for arrays on the host, on a real GPU: every launch takes its arrays there and back.

LORACLE_REHEARSAL=1 plays it through without a GPU: the arrays are copied, and the kernels run on the CPU runner.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from refimpl.arrays import device_namespace
from refimpl.cuda import runner
from refimpl.errors import DeviceError

REHEARSAL = os.environ.get("LORACLE_REHEARSAL") == "1"


def gpu_or_skip() -> Any:
    """cupy; numpy in a rehearsal. Skips the whole module, with the reason, where there is no GPU."""
    if REHEARSAL:
        return np
    if os.environ.get("LORACLE_KERNELS") == "cpu":
        pytest.skip("LORACLE_KERNELS=cpu (these tests run on a machine with an NVIDIA GPU)", allow_module_level=True)
    try:
        cupy = device_namespace("cuda")
    except DeviceError as error:
        pytest.skip(f"{error} (these tests run on a machine with an NVIDIA GPU)", allow_module_level=True)
    if os.environ.get("LORACLE_SANITIZER") == "1":
        cupy.cuda.set_allocator(None)  # each array its own allocation, so that one byte too far is outside
    return cupy


def copied(x: np.ndarray, xp: Any) -> Any:
    """The array in the other memory, as far from a multiple of 16 bytes as it was here."""
    bits = x.view(np.uint16) if x.dtype.name == "bfloat16" else x
    if not x.flags.c_contiguous or x.size == 0:
        return xp.asarray(bits)
    shift = x.ctypes.data % 16
    room = xp.empty(x.nbytes + shift + (16 if xp is np else 0), np.uint8)
    start = shift if xp is not np else shift + -room.ctypes.data % 16
    copy = room[start : start + x.nbytes].view(bits.dtype).reshape(x.shape)
    copy[...] = xp.asarray(bits)
    return copy


@contextlib.contextmanager
def shipped(xp: Any) -> Iterator[None]:
    """Inside, a launch accepts NumPy arrays: copies go to the GPU, and what the kernel wrote comes back."""
    original = runner.Module.launch

    def launch(
        self: runner.Module, name: str, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], smem: int = 0
    ) -> Any:
        there = [copied(a, xp) if isinstance(a, np.ndarray) else a for a in args]
        moved = original(self, name, grid, block, there, smem)
        for parameter, here, copy in zip(self.kernels[name], args, there, strict=True):
            if parameter.pointer and parameter.written and isinstance(here, np.ndarray):
                result = copy if isinstance(copy, np.ndarray) else copy.get()
                here.view(result.dtype)[...] = result
        return moved

    runner.Module.launch = launch  # type: ignore[method-assign]
    try:
        yield
    finally:
        runner.Module.launch = original  # type: ignore[method-assign]
