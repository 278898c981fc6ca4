"""Memory of large arrays, used again for the next ones: what CuPy's memory pool is on a GPU, on a CPU.

The arrays of a prompt's layer are megabytes each and live until the next step of the layer. The C library gives such
memory back to the system and asks for it anew each time, and the system fills each page with zeros before it hands it
out: a twentieth of a prefill. Here a block stays when its array is gone, and is the next array's.

    q, k, v  -> blocks 1, 2, 3      free: -
    o        -> block 4             free: 1, 2, 3      when attention has read q, k, v
    gate, up -> blocks 5, 6         free: 1, 2, 3, 4   too small for these; a later q, k, v, o has them

What is small, lives long and is read at every step lies side by side instead, in large pages (Arena).
"""

import math
import threading
import weakref
from collections.abc import Sequence

import numpy as np

from .arrays import Array, namespace

LARGE = 1 << 20  # bytes: the C library keeps what is smaller itself
KEPT = 1 << 28  # bytes that are free and kept, at most
LINE = 64  # bytes: of the processor's cache
PIECE = 1 << 25  # bytes of an arena at a time; for an array of 4 MB or more NumPy asks Linux for pages of 2 MB


class Loan:
    """A block while some array lies in it: what NumPy calls the base of an array, which all views of it hold, too."""

    def __init__(self, block: Array) -> None:
        self.__array_interface__ = block.__array_interface__


class MemoryPool:
    """Blocks that no array uses now. Any thread may ask, and a block may come back in the middle of anything: whenever
    the last view of its array goes."""

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._free: dict[int, Array] = {}  # by id, the one that has been free for longest first

    @property
    def free(self) -> int:
        """Bytes of the blocks that no array uses."""
        return sum(block.nbytes for block in self._free.copy().values())

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> Array:
        """Return an array that nothing was written to, as np.empty does, in a block that is free or a new one.

        The block is free again when the array and all views of it are gone."""
        size = math.prod(shape) * dtype.itemsize
        block = self._take(size)
        loan = Loan(block)
        weakref.finalize(loan, self._give_back, block)
        return np.asarray(loan)[:size].view(dtype).reshape(shape)

    def _take(self, size: int) -> Array:
        """The smallest block that is large enough and at most half empty. Another thread may be faster: then a new one,
        as where there is none."""
        fitting = [(block.nbytes, key) for key, block in self._free.copy().items() if size <= block.nbytes <= 2 * size]
        block = self._free.pop(min(fitting)[1], None) if fitting else None
        return np.empty(size, np.uint8) if block is None else block

    def _give_back(self, block: Array) -> None:
        self._free[id(block)] = block
        for key in list(self._free):
            if self.free > self.kept:
                self._free.pop(key, None)


class Arena:
    """Where arrays are put side by side, in pieces so large that the system gives them pages of 2 MB.

    A processor keeps in mind where some thousand pages are. Of 4 KB each they are less than a small model's weights,
    and a step of few tokens, which reads each weight once, would look every page up again. A piece goes with the last
    array in it."""

    def __init__(self) -> None:
        self._rest = np.empty(0, np.uint8)
        self._one_at_a_time = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> Array:
        """Return an array that nothing was written to, behind the one before it."""
        size = math.prod(shape) * dtype.itemsize
        with self._one_at_a_time:
            if size > len(self._rest):
                self._rest = np.empty(max(size, PIECE), np.uint8)
            block, self._rest = self._rest[:size], self._rest[size + -size % LINE :]
        return block.view(dtype).reshape(shape)


POOL = MemoryPool()


def empty(shape: Sequence[int], like: Array) -> Array:
    """Return an array of this shape, in the type of `like` and where it lives, that nothing was written to yet."""
    if not isinstance(like, np.ndarray) or math.prod(shape) * like.itemsize < LARGE:
        return namespace(like).empty(shape, like.dtype)
    return POOL.empty(shape, like.dtype)
