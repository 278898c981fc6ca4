"""The header is read as strictly as the safetensors library reads it, and every refusal is one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from folders import LFS_POINTER, random, safetensors_bytes, with_header
from hypothesis import given
from hypothesis import strategies as st

from refimpl.loading.diagnostics import Diagnostics
from refimpl.loading.safetensors_file import BITS, open_safetensors


def entry(dtype: Any = "F32", shape: Any = (2, 3), begin: Any = 0, end: Any = 24) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def problems_of(path: Path) -> list[str]:
    found = Diagnostics()
    file = open_safetensors(path, found)
    assert (file is None) == bool(found.problems)
    assert all(len(problem.splitlines()) == 1 and problem.startswith(str(path)) for problem in found.problems)
    return found.problems


def library_accepts(raw: bytes) -> bool:
    try:
        safetensors.deserialize(raw)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_arrays_lie_in_the_map(tmp_path: Path, dtype: str) -> None:
    tensors = {"a": random((2, 3), 1, dtype), "empty": random((0, 4), 2, dtype), "scalar": random((), 3, dtype)}
    (tmp_path / "x").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    file = open_safetensors(tmp_path / "x", Diagnostics())
    assert file is not None
    for name, x in tensors.items():
        assert np.array_equal(file.tensors[name], x)
        assert file.tensors[name].dtype == x.dtype
        assert file.tensors[name].shape == x.shape == file.shapes[name]
        assert not file.tensors[name].flags.writeable


def test_files_of_the_library(tmp_path: Path) -> None:
    tensors = {"b": random((3, 5)), "a": np.arange(6, dtype=np.int64), "c": random((4,), 1, "float16")}
    safetensors.numpy.save_file(tensors, tmp_path / "x", {"any": "text"})
    file = open_safetensors(tmp_path / "x", Diagnostics())
    assert file is not None
    assert np.array_equal(file.tensors["b"], tensors["b"])
    assert file.stored == {"a": "I64", "b": "F32", "c": "F16"}
    assert "a" not in file.tensors  # no model has integers; whoever meets one refuses it by name


def test_a_header_length_that_spells_a_pickle_is_read(tmp_path: Path) -> None:
    """640 is the bytes 80 02, with which a pickle begins; the JSON after it tells them apart."""
    for length in (640, 1152):
        header = json.dumps({"a": entry()}).ljust(length)
        path = tmp_path / "x.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + header.encode() + bytes(24))
        assert problems_of(path) == []


def test_an_odd_header_length_is_read(tmp_path: Path) -> None:
    header = json.dumps({"a": entry()}).encode() + b" "
    header += b" " * (1 - len(header) % 2)
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + random((2, 3)).tobytes())
    file = open_safetensors(tmp_path / "x", Diagnostics())
    assert file is not None
    assert np.array_equal(file.tensors["a"], random((2, 3)))


GOOD = safetensors_bytes({"a": random((2, 3)), "b": random((4,), 1)})
DATA = bytes(24)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is not a safetensors file: it has 0 bytes"),
        (b"{}", "is not a safetensors file: it has 2 bytes"),
        (LFS_POINTER, "is a Git LFS pointer to a file of size 167832240 bytes"),
        (b"PK\x03\x04" + bytes(100), "is a PyTorch pickle"),
        (b"\x80\x02" + bytes(100), "is a PyTorch pickle"),
        (bytes(100), "the safetensors header is not valid JSON"),
        ((2**40).to_bytes(8, "little") + bytes(100), "its header claims 1099511627776 bytes"),
        ((200).to_bytes(8, "little") + bytes(100), "is truncated: its header claims 200 bytes, the file has 108"),
        (GOOD[:-1], "is truncated: its tensors need 40 bytes, it has 39 after the header"),
        (GOOD + b"\0", "has 1 bytes after its last tensor"),
        (with_header("[1]"), "the safetensors header is [1], not a JSON object"),
        (with_header("[" * 100_000), "not valid JSON"),
        (with_header('{"a": 1e'), "not valid JSON"),
        (with_header('{"__metadata__": {"x": 1}}'), "__metadata__"),
        (with_header('{"__metadata__": "pt"}'), "__metadata__"),
        (with_header('{"a": 3}'), "tensor a: header entry 3"),
        (with_header('{"a": {"dtype": "F32"}}'), "must have dtype, shape and data_offsets"),
        (
            with_header(json.dumps({"a": entry()})[:-1] + "," + json.dumps({"a": entry()})[1:], DATA),
            "duplicate key 'a'",
        ),
        (with_header(json.dumps({"a": entry(dtype="F31")}), DATA), "dtype 'F31'"),
        (with_header(json.dumps({"a": entry(dtype=["F32"])}), DATA), "dtype ['F32']"),
        (with_header(json.dumps({"a": entry(shape=[2, -3])}), DATA), "shape [2, -3]"),
        (with_header(json.dumps({"a": entry(shape=[2, 3.0])}), DATA), "shape [2, 3.0]"),
        (with_header(json.dumps({"a": entry(shape=[2, True])}), DATA), "shape [2, True]"),
        (with_header(json.dumps({"a": entry(shape=6)}), DATA), "shape 6"),
        (with_header(json.dumps({"a": entry(shape=[1] * 40 + [6])}), DATA), "shape [1, 1,"),
        (with_header(json.dumps({"a": entry(shape=[2, 4])}), DATA), "F32 [2, 4] needs 32 bytes, data_offsets [0, 24]"),
        (with_header(json.dumps({"a": entry(end=20)}), DATA), "needs 24 bytes"),
        (with_header(json.dumps({"a": entry(begin=24, end=0)}), DATA), "needs 24 bytes"),
        (with_header(json.dumps({"a": entry(begin=-24, end=0)}), DATA), "data_offsets [-24, 0]"),
        (with_header(json.dumps({"a": entry(begin="0")}), DATA), "data_offsets ['0', 24]"),
        (with_header(json.dumps({"a": entry(begin=2**60, end=2**60 + 24)}), DATA), "leaves a gap after the header"),
        (with_header(json.dumps({"a": entry(), "b": entry()}), DATA), "overlaps a"),
        (with_header(json.dumps({"a": entry(), "b": entry(begin=28, end=52)}), bytes(52)), "leaves a gap after a"),
        (with_header(json.dumps({"a\n\x1b\ud800": entry(end=20)}), DATA), r"tensor a\n\x1b\ud800: "),
    ],
)
def test_damaged_files(tmp_path: Path, raw: bytes, says: str) -> None:
    (tmp_path / "x").write_bytes(raw)
    assert says in problems_of(tmp_path / "x")[0]
    assert not library_accepts(raw) or "duplicate" in says or "40" in says or "[1, 1," in says


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    assert "cannot be read" in problems_of(tmp_path / "nowhere")[0]
    assert "cannot be read" in problems_of(tmp_path)[0]


def test_every_type_of_the_format_has_a_size(tmp_path: Path) -> None:
    """Eight elements of each: the library must agree on how long they are."""
    for dtype, bits in BITS.items():
        raw = with_header(json.dumps({"a": entry(dtype, [8], 0, bits)}), bytes(bits))
        (tmp_path / "x").write_bytes(raw)
        assert not problems_of(tmp_path / "x")
        assert library_accepts(raw), dtype


@given(position=st.integers(0, 200), byte=st.integers(0, 255), cut=st.integers(0, 60))
def test_what_the_library_refuses_is_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, cut: int
) -> None:
    """One byte changed, some cut off: never an exception, and never more lenient than the library."""
    raw = bytearray(GOOD)
    raw[position % len(raw)] = byte
    raw = raw[: len(raw) - cut]
    path = tmp_path_factory.getbasetemp() / "corrupted.safetensors"
    path.write_bytes(raw)
    if not problems_of(path):
        assert library_accepts(bytes(raw))
