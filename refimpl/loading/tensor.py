"""One tensor of a checkpoint: mapped as it is, or quantised, and made into numbers each time that it is read."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_dtypes import finfo

from ..arrays import DTYPES, Array
from .families import WEIGHTS
from .safetensors_file import BITS, FLOATS, SafetensorsFile


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor that has not been read yet."""

    file: Path
    name: str  # in that file, for messages
    shape: tuple[int, ...]
    stored: str  # the type that it has in the file: float32, Q4_K, nf4, ...
    nbytes: int  # that it takes in the file
    dtype: str  # of the numbers that `read` returns
    read: Callable[[], Array]  # the memory map itself, or a new array
    problem: str | None = None  # why it cannot be read, if it cannot
    part: Callable[[tuple[Any, ...]], Array] | None = None  # read()[index] without making all the rest
    packing: Callable[[], tuple[Array, ...]] | None = None  # what read() makes it of, of a tensor that can stay packed
    largest: float = math.inf  # no number of a tensor that can stay packed is larger, and none is NaN

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def quantised(self) -> bool:
        """Whether the file holds something else than the numbers themselves."""
        return self.stored != self.dtype

    def at(self, index: tuple[Any, ...]) -> Array:
        """read()[index]."""
        return self.read()[index] if self.part is None else self.part(index)

    def is_mapped(self, dtype: str) -> bool:
        """Whether holding it in this type takes no memory."""
        return self.stored == dtype or self.stays_packed(dtype)

    def stays_packed(self, dtype: str) -> bool:
        """Whether it is read each time that it is used: it is packed, and this type holds all of its numbers."""
        return self.packing is not None and self.largest <= float(finfo(DTYPES[dtype]).max)


def stored_tensor(file: SafetensorsFile, name: str) -> Tensor:
    """A tensor of a safetensors file, as it lies there."""
    kind, shape = file.stored[name], file.shapes[name]
    nbytes = (math.prod(shape) * BITS[kind] + 7) // 8
    if kind not in FLOATS:
        problem = f"has dtype {kind}; supported are {', '.join(FLOATS)} ({WEIGHTS})"
        return Tensor(file.path, name, shape, kind, nbytes, kind, _unreadable, problem)
    array = file.tensors[name]
    return Tensor(file.path, name, shape, FLOATS[kind], nbytes, FLOATS[kind], lambda: array)


def _unreadable() -> Array:
    raise AssertionError("a tensor with a problem is not read")
