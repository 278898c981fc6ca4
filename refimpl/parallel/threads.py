"""Ranks as threads of one process: for the tests, and to look at all ranks at once. They meet at a barrier."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from typing import TypeVar

from ..arrays import Array, namespace

T = TypeVar("T")


class Meeting:
    """Where the threads lay down what they bring, and take what the others brought."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.arrays: list[Array] = [None] * size  # type: ignore[list-item]


class Thread:
    """A Communicator among threads."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.rank, self.size, self._meeting = rank, meeting.barrier.parties, meeting

    def all_reduce(self, x: Array) -> Array:
        """Sum in the order of the ranks, so that every rank gets the same bits."""
        return self._exchange(x, lambda arrays: reduce(add, arrays))

    def all_gather(self, x: Array, axis: int = -1) -> Array:
        """Concatenate in the order of the ranks."""
        return self._exchange(x, lambda arrays: namespace(x).concatenate(arrays, axis=axis))

    def _exchange(self, x: Array, combine: Callable[[Sequence[Array]], Array]) -> Array:
        """Nobody goes on before all have read: x may be written to then."""
        self._meeting.arrays[self.rank] = x
        self._meeting.barrier.wait()
        y = combine(self._meeting.arrays)
        self._meeting.barrier.wait()
        return y


def on_threads(size: int, function: Callable[[Thread], T]) -> list[T]:
    """Return what the function returns on each of `size` ranks. What one of them raises ends all, and is raised."""
    meeting, errors = Meeting(size), []

    def run(rank: int) -> T:
        try:
            return function(Thread(meeting, rank))
        except threading.BrokenBarrierError:
            raise
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]
