"""How ranks talk: the two collectives of tensor parallelism. threads.py, mpi.py and nccl.py are these on real ranks."""

from collections import Counter
from typing import Protocol

from ..arrays import Array


class Communicator(Protocol):
    """One rank's connection to the others. All ranks call the same collectives in the same order, or all wait."""

    rank: int
    size: int

    def all_reduce(self, x: Array) -> Array:
        """Return the sum of every rank's x, of one shape and type, the same on every rank."""

    def all_gather(self, x: Array, axis: int = -1) -> Array:
        """Return every rank's x side by side in the order of the ranks; along `axis` they may differ in width."""


class Counting:
    """A communicator that counts what its collectives return, in numbers: {"all_reduce": 512, "all_gather": 259}."""

    def __init__(self, inner: Communicator) -> None:
        self.inner, self.rank, self.size = inner, inner.rank, inner.size
        self.numbers: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def all_reduce(self, x: Array) -> Array:
        """Sum and count."""
        return self._counted("all_reduce", self.inner.all_reduce(x))

    def all_gather(self, x: Array, axis: int = -1) -> Array:
        """Gather and count."""
        return self._counted("all_gather", self.inner.all_gather(x, axis))

    def _counted(self, kind: str, y: Array) -> Array:
        self.numbers[kind] += y.size
        self.calls[kind] += 1
        return y
