"""Memory of large arrays, used again for the next ones: what CuPy's memory pool is on a GPU, on a CPU.

The arrays of a prompt's layer are megabytes each and live until the next step of the layer. The C library gives such
memory back to the system and asks for it anew each time, and the system fills each page with zeros before it hands it
out: a twentieth of a prefill. Here a block stays when its array is gone, and is the next array's.

    q, k, v  -> blocks 1, 2, 3      free: -
    o        -> block 4             free: 1, 2, 3      when attention has read q, k, v
    gate, up -> blocks 5, 6         free: 1, 2, 3, 4   too small for these; a later q, k, v, o has them
"""

import math
import weakref
from collections.abc import Sequence

import numpy as np

from .arrays import Array, namespace

LARGE = 1 << 20  # bytes: the C library keeps what is smaller itself
KEPT = 1 << 28  # bytes that are free and kept, at most


class Loan:
    """A block while some array lies in it: what NumPy calls the base of an array, which all views of it hold, too."""

    def __init__(self, block: Array) -> None:
        self.__array_interface__ = block.__array_interface__


class MemoryPool:
    """Blocks that no array uses now."""

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._free: dict[int, Array] = {}  # by id, the one that has been free for longest first

    @property
    def free(self) -> int:
        """Bytes of the blocks that no array uses."""
        return sum(block.nbytes for block in [*self._free.values()])

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
        fitting = [(block.nbytes, key) for key, block in [*self._free.items()] if size <= block.nbytes <= 2 * size]
        block = self._free.pop(min(fitting)[1], None) if fitting else None
        return np.empty(size, np.uint8) if block is None else block

    def _give_back(self, block: Array) -> None:
        self._free[id(block)] = block
        while self.free > self.kept:
            self._free.pop(next(iter(self._free)), None)


POOL = MemoryPool()


def empty(shape: Sequence[int], like: Array) -> Array:
    """Return an array of this shape, in the type of `like` and where it lives, that nothing was written to yet."""
    if not isinstance(like, np.ndarray) or math.prod(shape) * like.itemsize < LARGE:
        return namespace(like).empty(shape, like.dtype)
    return POOL.empty(shape, like.dtype)
