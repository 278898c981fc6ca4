"""Ranks as processes, started by mpirun, that talk by MPI (mpi4py). Arrays of a GPU go through the host here; nccl.py
is the way between GPUs."""

import sys
import time
from typing import Any

import numpy as np

from ..arrays import Array, namespace, to_host
from ..errors import DeviceError
from .launch import launch

NAP = 0.0005  # seconds between two looks at whether something has come: longer, and short jobs wait for it


class Mpi:
    """A Communicator between processes, and what rank 0 needs to lead the others. DeviceError without mpi4py."""

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except ImportError:
            raise DeviceError("mpirun started several ranks, which need mpi4py: pip install 'loracle[mpi]'") from None
        except RuntimeError as error:
            raise DeviceError(f"mpi4py finds no MPI library: pip install 'loracle[mpi]' ({error})") from None
        self._mpi, self._world = MPI, MPI.COMM_WORLD
        self.rank, self.size = self._world.rank, self._world.size
        if self.size != launch().size:
            raise DeviceError(f"mpirun started {launch().size} ranks, but mpi4py, of another MPI, sees {self.size}")

    def all_reduce(self, x: Array) -> Array:
        """Sum. Open MPI's algorithms leave the same bits on every rank."""
        total = np.array(to_host(x), order="C")
        self._world.Allreduce(self._mpi.IN_PLACE, total)
        return namespace(x).asarray(total)

    def all_gather(self, x: Array, axis: int = -1) -> Array:
        """Concatenate in the order of the ranks."""
        return namespace(x).asarray(np.concatenate(self._world.allgather(to_host(x)), axis=axis))

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        return self._world.bcast(value, root=0)

    def exchange(self, value: Any) -> list[Any]:
        """Return every rank's value, in their order."""
        return self._world.allgather(value)

    def send(self, value: Any, rank: int) -> None:
        """Send to one rank, which receives."""
        self._world.send(value, dest=rank)

    def receive(self) -> Any:
        """Return what rank 0 sent. To wait costs no time of the processor, which rank 0 may need."""
        while not self._world.Iprobe(source=0):
            time.sleep(NAP)
        return self._world.recv(source=0)

    def meet(self, seconds: float | None = None) -> bool:
        """Wait for all ranks to come here too; False if they have not after so many seconds."""
        arrival, start = self._world.Ibarrier(), time.monotonic()
        while not arrival.Test():
            if seconds is not None and time.monotonic() - start > seconds:
                return False
            time.sleep(NAP)
        return True

    def abort(self, code: int) -> None:
        """End all ranks at once with this exit code."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._world.Abort(code)
