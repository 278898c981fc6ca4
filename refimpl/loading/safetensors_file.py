"""A .safetensors file as read-only arrays over its memory map.

    8 bytes    N, the length of the header: unsigned, little-endian
    N bytes    JSON: {name: {"dtype": "BF16", "shape": [...], "data_offsets": [begin, end]}, "__metadata__": {str: str}}
    the rest   the tensors, row-major and little-endian, without gap or overlap

The safetensors library reads the same files into copies. A model wants the map itself, so the header is read here, as
strictly as the library does (safetensors/src/tensor.rs, `Metadata::validate`); the tests compare the two.
"""

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import DTYPES, Array
from .diagnostics import Diagnostics, shown
from .json_file import is_integer, lfs_pointer, parse_json

MAX_HEADER = 100_000_000  # the library's own limit
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, eq=False)
class SafetensorsFile:
    """An opened file: `stored` has every tensor's dtype as the header spells it, `tensors` only those of floats."""

    path: Path
    tensors: Mapping[str, Array] = field(default_factory=dict)
    raw: Mapping[str, Array] = field(default_factory=dict)  # the bytes of each, whatever its dtype
    stored: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)  # what the writer has said besides


def open_safetensors(path: Path, diagnostics: Diagnostics) -> SafetensorsFile | None:
    """Map a file, or None with every problem of its header noted. The arrays are read-only and hold the map open."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(200)
            if problem := _not_safetensors(head, size):
                diagnostics.problem(path, problem)
                return None
            length = int.from_bytes(head[:8], "little")
            file.seek(8)
            header = file.read(length)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        if os.path.islink(path) and not os.path.exists(path):
            diagnostics.problem(path, f"is a link to {os.readlink(path)}, which is not there")
        else:
            diagnostics.problem(path, f"cannot be read ({getattr(error, 'strerror', None) or error})")
        return None
    parsed = _header(path, header, size - 8 - length, diagnostics)
    if parsed is None:
        return None
    entries, metadata = parsed
    return SafetensorsFile(
        path,
        {
            name: _view(mapped, 8 + length + begin, dtype, shape)
            for name, (dtype, shape, begin, _) in entries.items()
            if dtype in FLOATS
        },
        {name: _bytes(mapped, 8 + length + begin, end - begin) for name, (_, _, begin, end) in entries.items()},
        {name: entry[0] for name, entry in entries.items()},
        {name: entry[1] for name, entry in entries.items()},
        metadata,
    )


def _not_safetensors(head: bytes, size: int) -> str | None:
    """What the first bytes say against this file being safetensors at all."""
    if pointer := lfs_pointer(head):
        return pointer
    if size < 10:
        return f"is not a safetensors file: it has {size} bytes"
    # The header's length may spell the same bytes (640 is 80 02); what follows it is JSON.
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")) and head[8:9] != b"{":
        return "is a PyTorch pickle under another name; it is not read, because a pickle can run code"
    if head.lstrip()[:1] in (b"<", b"{"):
        return f"is not a safetensors file: it is text, {shown(head[:40].decode('utf-8', 'replace'))}"
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER:
        return f"is not a safetensors file: its header claims {length} bytes, more than {MAX_HEADER}"
    if 8 + length > size:
        return f"is truncated: its header claims {length} bytes, the file has {size}"
    return None


Entry = tuple[str, tuple[int, ...], int, int]  # dtype, shape, begin and end in the data


def _header(
    path: Path, raw: bytes, data_size: int, diagnostics: Diagnostics
) -> tuple[dict[str, Entry], dict[str, str]] | None:
    """The header's entries and its metadata, or None with its problems noted."""
    try:
        header = parse_json(raw)
    except (ValueError, RecursionError) as error:
        diagnostics.problem(path, f"the safetensors header is not valid JSON ({error})")
        return None
    if not isinstance(header, dict):
        diagnostics.problem(path, f"the safetensors header is {shown(header)}, not a JSON object")
        return None
    before = len(diagnostics.problems)
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not _is_text_map(metadata):
        diagnostics.problem(path, f"__metadata__ is {shown(metadata)}, not a map from text to text")
    entries = {}
    for name, raw_entry in header.items():
        try:
            entries[name] = _entry(raw_entry)
        except ValueError as error:
            diagnostics.problem(path, f"tensor {name}: {error}")
    if len(diagnostics.problems) == before:
        _check_layout(path, entries, data_size, diagnostics)
    return (entries, metadata or {}) if len(diagnostics.problems) == before else None


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _entry(raw: Any) -> Entry:
    """One tensor's dtype, shape and offsets. ValueError if they do not agree with each other."""
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"header entry {shown(raw)} must have dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"dtype {shown(dtype)} is not one of the format's")
    if not isinstance(shape, list) or len(shape) > 32 or not all(is_integer(n) and 0 <= n < 2**48 for n in shape):
        raise ValueError(f"shape {shown(shape)} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_integer(n) and 0 <= n < 2**63 for n in offsets):
        raise ValueError(f"data_offsets {shown(offsets)} is not [begin, end]")
    need, (begin, end) = (math.prod(shape) * BITS[dtype] + 7) // 8, offsets
    if end - begin != need:
        raise ValueError(f"{dtype} {shown(shape)} needs {need} bytes, data_offsets {offsets} give it {end - begin}")
    return dtype, tuple(shape), begin, end


def _check_layout(path: Path, entries: Mapping[str, Entry], data_size: int, diagnostics: Diagnostics) -> None:
    """The tensors must lie end to end and fill the file."""
    position, previous = 0, "the header"
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            kind = "overlaps" if begin < position else "leaves a gap after"
            diagnostics.problem(
                path, f"tensor {name}: begins at byte {begin}, which {kind} {previous}, ending at {position}"
            )
        position, previous = end, name
    if position > data_size:
        diagnostics.problem(
            path, f"is truncated: its tensors need {position} bytes, it has {data_size} after the header"
        )
    elif position < data_size:
        diagnostics.problem(path, f"has {data_size - position} bytes after its last tensor")


def _view(mapped: mmap.mmap, start: int, dtype: str, shape: tuple[int, ...]) -> Array:
    """A read-only array over the map; the array keeps the map alive."""
    count = math.prod(shape)
    return np.frombuffer(mapped, DTYPES[FLOATS[dtype]], count, start if count else 0).reshape(shape)


def _bytes(mapped: mmap.mmap, start: int, size: int) -> Array:
    return np.frombuffer(mapped, np.uint8, size, start if size else 0)


# Every dtype of the format (safetensors/src/tensor.rs) in bits: another one makes the offsets uncheckable.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64,
}  # fmt: skip
