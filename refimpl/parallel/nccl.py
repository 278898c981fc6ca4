"""Ranks with a GPU each, whose numbers go from GPU to GPU (NCCL, through CuPy). How they find each other is MPI's.

This was written against CuPy's documentation (cupy.cuda.nccl) and run against a stand-in for it: it has not been on
several GPUs yet.
"""

import math
from typing import Any

from ..arrays import Array, device_namespace
from ..errors import DeviceError
from .mpi import Mpi

TYPES = {"float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64"}  # the only ones in which this package computes


def choose_gpu(rank: int) -> None:
    """Compute on this rank's own GPU. DeviceError where there are fewer GPUs than ranks: NCCL needs one for each."""
    cupy = device_namespace("cuda")
    count = cupy.cuda.runtime.getDeviceCount()
    if rank >= count:
        raise DeviceError(f"rank {rank} has no GPU: there are {count}, and NCCL needs one for each rank")
    cupy.cuda.Device(rank).use()


class Nccl:
    """A Communicator between GPUs. DeviceError where this CuPy has no NCCL."""

    def __init__(self, mpi: Mpi) -> None:
        self.rank, self.size, self._mpi = mpi.rank, mpi.size, mpi
        self._cupy = device_namespace("cuda")
        try:
            from cupy.cuda import nccl
        except ImportError:
            raise DeviceError("several GPUs need NCCL, and this CuPy has none (pip install nvidia-nccl-cu12)") from None
        self._nccl = nccl
        name = mpi.broadcast(nccl.get_unique_id() if mpi.rank == 0 else None)
        self._group = nccl.NcclCommunicator(mpi.size, name, mpi.rank)

    def all_reduce(self, x: Array) -> Array:
        """Sum."""
        addends = self._cupy.ascontiguousarray(x)
        total = self._cupy.empty_like(addends)
        self._group.allReduce(
            addends.data.ptr, total.data.ptr, x.size, self._type(x), self._nccl.NCCL_SUM, self._stream()
        )
        return total

    def all_gather(self, x: Array, axis: int = -1) -> Array:
        """Concatenate in the order of the ranks. NCCL's parts are of one size: narrower ones are filled up."""
        shapes = self._mpi.exchange(x.shape)
        most = max(math.prod(shape) for shape in shapes)
        padded = self._cupy.zeros(most, x.dtype)
        padded[: x.size] = x.reshape(-1)
        parts = self._cupy.empty((self.size, most), x.dtype)
        self._group.allGather(padded.data.ptr, parts.data.ptr, most, self._type(x), self._stream())
        arrays = [part[: math.prod(shape)].reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return self._cupy.concatenate(arrays, axis=axis)

    def _type(self, x: Array) -> Any:
        return getattr(self._nccl, TYPES[x.dtype.name])

    def _stream(self) -> int:
        return int(self._cupy.cuda.get_current_stream().ptr)
