"""A .safetensors file written one tensor after another, each some rows at a time: it takes no memory of its size.

The library's save_file wants every tensor of the file at once, which is a model as large as memory. The format is in
loading/safetensors_file.py."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arrays import DTYPES, Array
from ..errors import WeightsError
from ..loading.conversion import CHUNK
from ..loading.safetensors_file import FLOATS
from .files import PYTORCH

SPELLED = {dtype: code for code, dtype in FLOATS.items()}


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor that will be written: `rows` yields its numbers in order, in this dtype, when they are wanted."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: Callable[[], Iterable[Array]]

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_stream(file: Path, entries: Sequence[Entry]) -> None:
    """Write the tensors, those of wide types first, so that each is aligned. Any name may be there once.

    WeightsError if a tensor yields more or less than its shape; OSError if the file cannot be written."""
    ordered = sorted(entries, key=lambda entry: -DTYPES[entry.dtype].itemsize)
    header: dict[str, object] = {"__metadata__": PYTORCH}
    position = 0
    for entry in ordered:
        ends = [position, position + entry.nbytes]
        header[entry.name] = {"dtype": SPELLED[entry.dtype], "shape": list(entry.shape), "data_offsets": ends}
        position = ends[1]
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with open(file, "xb") as opened:
        opened.write(len(raw).to_bytes(8, "little") + raw)
        for entry in ordered:
            sizes = [opened.write(bytes_of(array, entry)) for array in entry.rows()]
            if sum(sizes) != entry.nbytes:
                raise WeightsError(f"{file}: tensor {entry.name} came with {sum(sizes)} of its {entry.nbytes} bytes")


def bytes_of(array: Array, entry: Entry) -> memoryview:
    """The bytes of some rows. WeightsError if they are of another type than the entry says."""
    if array.dtype != DTYPES[entry.dtype]:
        raise WeightsError(f"tensor {entry.name} came in {array.dtype.name}, not in {entry.dtype}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def pieces(array: Array) -> Iterator[Array]:
    """Flat views of an array that may be a memory map: nothing of it stays in memory after it is written."""
    flat = array.reshape(-1)
    return (flat[i : i + CHUNK] for i in range(0, flat.size, CHUNK))
