"""Whatever lies in the folder: it loads, or there is one line. Never an exception of a library, never a crash."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import (
    BASE,
    adapter_json,
    config_json,
    lora_tensors,
    model_tensors,
    refused,
    safetensors_bytes,
    write_adapter,
    write_model,
)
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import AdapterWarning, LoracleError
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.config_file import load_config
from refimpl.loading.model_folder import load_model
from refimpl.tools.inspect import inspect

# Values of every type, and those that have crashed readers: huge numbers, NaN, lists in lists, text that is a pattern.
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 40),
        st.sampled_from([2**31, 2**63, -(10**30), 10**400, 0.5, -1.0, 1e308, float("nan"), float("inf")]),
        st.sampled_from(
            ["", "(", "*", "q_proj", ".*", "all-linear", "a\nb", "\x00", "LORA", "default", "\\", "{0}", "%s"]
        ),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def outcome(load: Callable[[], object], folder: Path) -> None:
    """Load; and what inspect says must agree with whether that worked."""
    ours = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdapterWarning)
        try:
            load()
        except LoracleError as error:
            ours = str(error)
            assert len(ours.splitlines()) == 1
            assert str(folder) in ours
    seen = inspect(folder, BASE)
    assert seen.ok == (ours is None), (ours, seen.problems)
    assert not ours or ours.startswith(seen.problems[0])
    assert all(len(line.splitlines()) == 1 for line in seen.problems + seen.warnings)


def corrupted(raw: bytes, edits: list[tuple[int, int]], cut: int) -> bytes:
    """Some bytes changed (the first kilobyte most of all: that is where the header is), some cut off."""
    changed = bytearray(raw)
    for position, byte in edits:
        changed[position % len(changed)] = byte
    return bytes(changed[: max(len(changed) - cut, 0)])


EDITS = st.lists(st.tuples(st.one_of(st.integers(0, 40), st.integers(0, 100_000)), st.integers(0, 255)), max_size=4)
CUTS = st.one_of(st.just(0), st.integers(0, 50), st.integers(0, 100_000))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@given(edits=EDITS, cut=CUTS)
def test_corrupted_model_files(folders: Path, file: str, edits: list[tuple[int, int]], cut: int) -> None:
    folder = write_model(folders / "model")
    (folder / file).write_bytes(corrupted((folder / file).read_bytes(), edits, cut))
    outcome(lambda: load_model(folder), folder)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@given(edits=EDITS, cut=CUTS)
def test_corrupted_adapter_files(folders: Path, file: str, edits: list[tuple[int, int]], cut: int) -> None:
    folder = write_adapter(folders / "adapter")
    (folder / file).write_bytes(corrupted((folder / file).read_bytes(), edits, cut))
    outcome(lambda: load_adapter(folder, BASE), folder)


MORE = (
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "layer_types",
    "attention_bias",
    "eos_token_id",
    "auto_map",
)


@given(key=st.sampled_from([*sorted(config_json()), *MORE]), value=VALUES)
def test_any_value_in_config_json(folders: Path, key: str, value: Any) -> None:
    folder = write_model(folders / "config", **{key: value})
    outcome(lambda: load_model(folder), folder)


@given(kind=st.sampled_from(["default", "linear", "llama3"]), value=VALUES, key=st.sampled_from(["factor", "rope_theta",
       "type", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "x"]))  # fmt: skip
def test_any_value_in_rope_scaling(folders: Path, kind: str, key: str, value: Any) -> None:
    rope = {"rope_type": kind, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    (folders / "config.json").write_text(
        json.dumps(config_json(rope_scaling=rope | {"original_max_position_embeddings": 8} | {key: value}))
    )
    try:
        load_config(folders)
    except LoracleError as error:
        assert len(str(error).splitlines()) == 1


@given(key=st.sampled_from([*sorted(adapter_json()), "lora_bias", "use_dora", "unknown"]), value=VALUES)
def test_any_value_in_adapter_config(folders: Path, key: str, value: Any) -> None:
    folder = write_adapter(folders / "peft", **{key: value})
    outcome(lambda: load_adapter(folder, BASE), folder)


@given(key=st.sampled_from(["metadata", "weight_map"]), value=VALUES)
def test_any_value_in_the_index(folders: Path, key: str, value: Any) -> None:
    folder = write_model(folders / "index")
    weight_map = dict.fromkeys(model_tensors(), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map} | {key: value})
    )
    outcome(lambda: load_model(folder), folder)


@given(field=st.sampled_from(["dtype", "shape", "data_offsets", "other", None]), value=VALUES, which=st.integers(0, 30))
def test_any_value_in_a_safetensors_header(folders: Path, field: str | None, value: Any, which: int) -> None:
    folder = write_adapter(folders / "header")
    raw = safetensors_bytes(lora_tensors())
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = sorted(header)[which % len(header)]
    header[name] = value if field is None else header[name] | {field: value}
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    outcome(lambda: load_adapter(folder, BASE), folder)


@given(raw=st.binary(max_size=300), file=st.sampled_from(["config.json", "model.safetensors", "tokenizer.json"]))
def test_any_bytes(folders: Path, raw: bytes, file: str) -> None:
    folder = write_model(folders / "bytes")
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / file).write_bytes(raw)
    outcome(lambda: load_model(folder), folder)


@pytest.mark.parametrize("path", ["", "nowhere", "a\0b", "too long", "/dev/null", "/dev/null/x", "a\nb", "\ud800"])
def test_any_path(path: str) -> None:
    path = "x" * 5000 if path == "too long" else path
    for load in (load_model, lambda path: load_adapter(path, BASE), load_config):
        with refused(LoracleError):
            load(path)
    assert not inspect(path).ok


def test_folders_in_place_of_files(folders: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        folder = write_model(folders / f"with folder {name}")
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
        outcome(lambda folder=folder: load_model(folder), folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        folder = write_adapter(folders / f"with folder {name}")
        (folder / name).unlink()
        (folder / name).mkdir()
        outcome(lambda folder=folder: load_adapter(folder, BASE), folder)
