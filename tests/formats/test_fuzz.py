"""2,000 damaged files: each is refused in one line, or read as an independent reader reads it. Never anything between.

npy is held against numpy.load, safetensors against the safetensors library, JSON against json. tests/loading has the
same for whole model folders, with the damage drawn by hypothesis.
"""

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from formats.pairs import DOC_BASE, DOC_ROWS, doc_weights, write
from loading.folders import BASE, lora_tensors, write_adapter

from refimpl.formats.trtllm_pair import CONFIG_FILE, WEIGHTS_FILE, check_pair, read_pair
from refimpl.loading.adapter_folder import read_adapter
from refimpl.loading.diagnostics import Diagnostics

COUNT = 500  # of each of four kinds of file

# Pieces that have meant something to some reader of such files.
WORDS = [
    *(b"<f2", b"<f4", b"<i4", b"<i8", b"|V2", b"|O", b"True", b"False", b"fortran_order", b"descr", b"shape"),
    *(b"(1, 6, 64)", b"(1, 64, 6)", b"(-1,)", b"()", b"(384,)", b"0x1", b"1e3", b"9" * 30, b"null", b"NaN", b"[["),
    *(b"{", b"}", b"'", b'"', b"\\", b"\n", b"\x00", b"\xff", b"#", b"F16", b"BF16", b"I32", b"data_offsets", b"dtype"),
    *(b"-1", b"1.5", b"lora_alpha"),
]


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """One to three changes: a bit, a byte, a digit, a word, a piece cut out, doubled or moved, the end cut off."""
    x = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        # the header is where the meaning is
        at = rng.randrange(min(len(x), rng.choice([16, 200, len(x)]))) if x else 0
        size = rng.randint(1, 12)
        kind = rng.randrange(9)
        if not x or kind == 0:
            x[at:at] = rng.choice(WORDS)
        elif kind == 1:
            x[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            x[at] = rng.randrange(256)
        elif kind == 3:
            word = rng.choice(WORDS)
            x[at : at + len(word)] = word
        elif kind == 4:
            digits = [i for i, byte in enumerate(x[:400]) if 48 <= byte < 58]
            x[rng.choice(digits or [at])] = rng.choice(b"0123456789-")
        elif kind == 5:
            del x[at : at + size]
        elif kind == 6:
            x[at:at] = x[at : at + size]
        elif kind == 7:
            other = rng.randrange(len(x))
            x[at : at + size] = x[other : other + size]
        else:
            del x[rng.randrange(len(x)) :]
    return bytes(x)


def one_line_each(found: Diagnostics, folder: Path) -> None:
    assert all(len(line.splitlines()) == 1 and str(folder) in line for line in found.problems + found.warnings)


def npy_agrees(folder: Path, file: str) -> bool:
    """Whether the pair was accepted; then numpy, asked the same, must have read the same bytes."""
    found = Diagnostics()
    pair = read_pair(folder, found)
    if pair:
        check_pair(pair, folder, found, DOC_BASE, "float16", max_rank=8)
    one_line_each(found, folder)
    if found.problems:
        return False
    assert pair is not None
    ours = {WEIGHTS_FILE: pair.weights, CONFIG_FILE: pair.config}
    for name, x in ours.items():
        theirs = np.load(folder / name, allow_pickle=False)
        assert (theirs.shape, theirs.dtype.str, theirs.tobytes()) == ((1, *x.shape), x.dtype.str, x.tobytes())
    return True


def safetensors_agrees(folder: Path, file: str) -> bool:
    found = Diagnostics()
    adapter = read_adapter(folder, BASE, "fuzzed", found)
    one_line_each(found, folder)
    if found.problems:
        return False
    assert adapter is not None
    raw = (folder / file).read_bytes()
    theirs = safetensors.numpy.load(raw)
    ours = {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{half}.weight": x
        for (layer, module), w in adapter.lora.items()
        for half, x in (("A", w.A), ("B", w.B))
    }
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        y = theirs[name]
        assert (y.shape, y.dtype, y.tobytes()) == (x.shape, x.dtype, x.tobytes())
    return True


def json_agrees(folder: Path, file: str) -> bool:
    found = Diagnostics()
    adapter = read_adapter(folder, BASE, "fuzzed", found)
    one_line_each(found, folder)
    if found.problems:
        return False
    assert adapter is not None
    theirs = json.loads((folder / file).read_bytes().decode("utf-8-sig"))
    c = adapter.config
    assert (c.r, c.lora_alpha, list(c.target_modules)) == (theirs["r"], theirs["lora_alpha"], theirs["target_modules"])
    for key, default in (("use_rslora", False), ("bias", "none"), ("lora_bias", False)):
        assert getattr(c, key) == (default if theirs.get(key) is None else theirs[key])
    for key in ("rank_pattern", "alpha_pattern"):
        assert dict(getattr(c, key)) == (theirs.get(key) or {})
    return True


def pair_folder(folder: Path) -> Path:
    return write(folder, doc_weights(), DOC_ROWS)


def peft_folder(folder: Path) -> Path:
    modules = ("q_proj", "v_proj")
    return write_adapter(folder, lora_tensors(modules=modules), target_modules=list(modules))


KINDS: dict[str, tuple[Callable[[Path], Path], str, Callable[[Path, str], bool]]] = {
    "weights.npy": (pair_folder, WEIGHTS_FILE, npy_agrees),
    "config.npy": (pair_folder, CONFIG_FILE, npy_agrees),
    "safetensors": (peft_folder, "adapter_model.safetensors", safetensors_agrees),
    "json": (peft_folder, "adapter_config.json", json_agrees),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_or_read_as_everybody_reads_it(tmp_path: Path, kind: str) -> None:
    make, file, agrees = KINDS[kind]
    folder, rng = make(tmp_path), random.Random(kind)
    raw = (folder / file).read_bytes()
    assert agrees(folder, file)
    accepted = 0
    for _ in range(COUNT):
        (folder / file).write_bytes(damaged(raw, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a library that guesses warns
            accepted += agrees(folder, file)
    assert 0 < accepted < COUNT  # some damage is only to a number, and reads as another number
