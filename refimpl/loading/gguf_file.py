"""A .gguf file as its metadata and read-only bytes over its memory map.

    4 bytes     GGUF; u32 version; u64 number of tensors; u64 number of metadata entries; all little-endian
    metadata    string key, u32 type, value;  string: u64 length, UTF-8;  array: u32 type, u64 length, values
    tensors     string name, u32 axes, u64 size of each axis, fastest first, u32 type, u64 offset
    the data    from the next multiple of general.alignment (32); each tensor begins at such a multiple

The gguf package reads the same files, and trusts their counts and offsets. A damaged file is no reason to run for an
hour, so the header is read here, as strictly as llama.cpp does (ggml/src/gguf.cpp); the tests compare the two.
"""

import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from .diagnostics import Diagnostics, shown
from .json_file import lfs_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 3 is 2, with big-endian files allowed
SUFFIX = ".gguf"

# Metadata types (gguf/constants.py, GGUFValueType) as struct and NumPy spell them; 8 is a string, 9 an array.
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY = 8, 9

# Types of tensors (gguf/constants.py, GGMLQuantizationType): name, numbers in a block, bytes of a block.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 28: ("F64", 1, 8), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """One tensor: its type by name, its shape in NumPy's order, and its bytes [rows, bytes of a row]."""

    type: str
    shape: tuple[int, ...]
    data: Array


@dataclass(frozen=True, eq=False)
class GgufFile:
    """An opened file. A float32 of the metadata is the shortest decimal that rounds to it: 1e-05, not 9.99999975e-06,
    because it was written down so in the config.json that the file was made from."""

    path: Path
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, GgufTensor] = field(default_factory=dict)


def is_gguf(path: str | Path) -> bool:
    """Whether a path is a file that begins as GGUF does, or at least has the name of one."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return file.read(4) == MAGIC or str(path).endswith(SUFFIX)
    except OSError:
        return str(path).endswith(SUFFIX)


def open_part(path: Path, diagnostics: Diagnostics) -> GgufFile | None:
    """Map one file, or None with the first problem of its header noted. The arrays are read-only and hold the map."""
    try:
        with open(path, "rb") as file:
            head = file.read(200)
            if problem := _not_gguf(head):
                diagnostics.problem(path, problem)
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        diagnostics.problem(path, f"cannot be read ({error})")
        return None
    try:
        return _read(path, mapped)
    except ValueError as error:
        diagnostics.problem(path, str(error))
        return None


def _not_gguf(head: bytes) -> str | None:
    """What the first bytes say against this file being GGUF, or a version of it that is read."""
    if pointer := lfs_pointer(head):
        return pointer
    if head[:4] != MAGIC:
        return f"is not a GGUF file: it begins with {shown(head[:4])}"
    if len(head) < 24:
        return f"is truncated: it has {len(head)} bytes"
    version = int.from_bytes(head[4:8], "little")
    if version not in VERSIONS:
        big = int.from_bytes(head[4:8], "big") in VERSIONS
        return (
            "is a big-endian GGUF file, which is not supported"
            if big
            else f"is GGUF of version {version}; 2 and 3 are read"
        )
    return None


def _read(path: Path, mapped: mmap.mmap) -> GgufFile:
    """The whole header. ValueError for what is wrong with it."""
    cursor = Cursor(mapped, 8)
    tensor_count, entry_count = cursor.scalar("<u8"), cursor.scalar("<u8")
    metadata: dict[str, Any] = {}
    for number in range(cursor.checked(entry_count, 13, "metadata entries")):
        key = cursor.string(f"key {number} of the metadata")
        if key in metadata:
            raise ValueError(f"metadata key {key} is there twice")
        metadata[key] = cursor.value(cursor.scalar("<u4"), key)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {shown(alignment)}: it must be a power of two")
    entries: dict[str, Entry] = {}
    for number in range(cursor.checked(tensor_count, 24, "tensors")):
        name = cursor.string(f"the name of tensor {number}")
        if name in entries:
            raise ValueError(f"tensor {name} is there twice")
        entries[name] = _entry(name, cursor)
    start = -(-cursor.position // alignment) * alignment
    return GgufFile(path, metadata, dict(_tensors(mapped, start, alignment, entries)))


class Entry(NamedTuple):
    """What the header says of one tensor."""

    type: str
    shape: tuple[int, ...]
    row: int  # bytes of one
    size: int  # bytes of all
    offset: int  # in the data


def _entry(name: str, cursor: "Cursor") -> Entry:
    axes = cursor.scalar("<u4")
    if not 1 <= axes <= 4:
        raise ValueError(f"tensor {name} has {axes} axes; there can be 1 to 4")
    shape = tuple(cursor.scalar("<u8") for _ in range(axes))[::-1]
    number, offset = cursor.scalar("<u4"), cursor.scalar("<u8")
    if number not in TYPES:
        raise ValueError(f"tensor {name} has type {number}, which is none of the format's")
    kind, block, size = TYPES[number]
    if shape[-1] % block:
        raise ValueError(
            f"tensor {name} has rows of {shape[-1]} numbers, which is no multiple of {kind}'s block of {block}"
        )
    row = shape[-1] // block * size
    return Entry(kind, shape, row, row * math.prod(shape[:-1]), offset)


def _tensors(
    mapped: mmap.mmap, start: int, alignment: int, entries: Mapping[str, Entry]
) -> Iterator[tuple[str, GgufTensor]]:
    """The arrays. The tensors must lie end to end, each filled up to the alignment."""
    position = 0
    for name, (kind, shape, row, size, offset) in entries.items():
        if offset != position:
            raise ValueError(f"tensor {name} begins at byte {offset} of the data; the ones before it end at {position}")
        if start + offset + size > len(mapped):
            raise ValueError(
                f"is truncated: tensor {name} ends at byte {start + offset + size}, the file has {len(mapped)}"
            )
        data = np.frombuffer(mapped, np.uint8, size, start + offset if size else 0)
        yield name, GgufTensor(kind, shape, data.reshape(*shape[:-1], row))
        position += -(-size // alignment) * alignment
    if len(mapped) > start + position:
        raise ValueError(f"has {len(mapped) - start - position} bytes after its last tensor")


class Cursor:
    """Where the header has been read to. ValueError for whatever would lie beyond the end."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self.data, self.position = data, position

    def take(self, size: int, what: str = "the header") -> bytes:
        """Return the next `size` bytes."""
        end = self.position + size
        if end > len(self.data):
            raise ValueError(f"is truncated: {what} ends at byte {end}, the file has {len(self.data)}")
        begin, self.position = self.position, end
        return self.data[begin:end]

    def scalar(self, kind: str) -> Any:
        """Return one number."""
        size = np.dtype(kind).itemsize
        return np.frombuffer(self.take(size), kind)[0].item()

    def checked(self, count: int, least: int, what: str) -> int:
        """Return a count of things of at least so many bytes each, if they can be there."""
        if count * least > len(self.data) - self.position:
            raise ValueError(f"is truncated: it claims {count} {what}, and has {len(self.data)} bytes")
        return count

    def string(self, what: str) -> str:
        """Return a length and so many bytes of UTF-8 as text."""
        (length,) = struct.unpack("<Q", self.take(8, what))
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{what} is not valid UTF-8") from None

    def strings(self, count: int, key: str) -> list[str]:
        """Return so many strings: `string` in a loop, but a vocabulary has half a million of them."""
        data, end, length_at, texts = self.data, len(self.data), struct.Struct("<Q").unpack_from, []
        position = self.position
        for _ in range(count):
            start = position + 8
            position = start + length_at(data, position)[0] if start <= end else end + 1
            if position > end:
                raise ValueError(f"is truncated: {key} ends at byte {position}, the file has {end}")
            texts.append(data[start:position])
        self.position = position
        try:
            return [text.decode("utf-8") for text in texts]
        except UnicodeDecodeError:
            raise ValueError(f"{key} is not valid UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        """Return one value of the metadata, or a list of them."""
        if kind in SCALARS:
            return plain(np.frombuffer(self.take(np.dtype(SCALARS[kind]).itemsize, key), SCALARS[kind]))[0]
        if kind == STRING:
            return self.string(key)
        if kind != ARRAY:
            raise ValueError(f"metadata {key} has type {kind}, which is none of the format's")
        inner, count = self.scalar("<u4"), self.scalar("<u8")
        if inner == STRING:
            return self.strings(self.checked(count, 8, f"strings of {key}"), key)
        if inner not in SCALARS:
            raise ValueError(f"metadata {key} is an array of type {inner}, which is not supported")
        size = np.dtype(SCALARS[inner]).itemsize
        return plain(
            np.frombuffer(self.take(self.checked(count, size, f"values of {key}") * size, key), SCALARS[inner])
        )


def plain(values: Array) -> list[Any]:
    """The numbers as Python's own; float32 as the shortest decimal that rounds to it."""
    if values.dtype == np.float32:
        return [float(str(value)) for value in values]
    return values.tolist()
