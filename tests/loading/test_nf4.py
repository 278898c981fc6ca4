"""bitsandbytes' 4-bit checkpoints: the numbers that its kernels multiply with, and a QLoRA on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading.folders import BASE, model_tensors, refused, safetensors_bytes, write_model
from loading.nf4_writer import CONFIG, checkpoint, nf4_tensors, state_bytes
from loading.test_weights import arrays_of
from support.build import random_adapter

from refimpl import Request, cli, logits
from refimpl.arrays import DTYPES
from refimpl.errors import LoracleError, WeightsError
from refimpl.formats.hf import save_model
from refimpl.loading.bitsandbytes_4bit import NF4
from refimpl.loading.model_folder import load_model
from refimpl.tools.inspect import inspect
from refimpl.tools.merge import merged

Q = "model.layers.0.self_attn.q_proj.weight"
STATE = f"{Q}.quant_state.bitsandbytes__nf4"


def definition(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """One number after the other, as kDequantizeBlockwise does."""
    state = json.loads(bytes(tensors[f"{name}.quant_state.bitsandbytes__nf4"]))
    packed, result = tensors[name].reshape(-1), np.zeros(int(np.prod(state["shape"])), DTYPES[state["dtype"]])
    for i in range(result.size):
        code = packed[i // 2] >> 4 if i % 2 == 0 else packed[i // 2] & 15
        block = i // state["blocksize"]
        absmax = tensors[f"{name}.absmax"][block]
        if "nested_blocksize" in state:
            scale = tensors[f"{name}.nested_absmax"][block // state["nested_blocksize"]]
            absmax = np.float32(tensors[f"{name}.nested_quant_map"][absmax] * scale) + np.float32(
                state["nested_offset"]
            )
        result[i] = DTYPES[state["dtype"]].type(np.float32(NF4[code]) * np.float32(absmax))
    return result.reshape(state["shape"])


def folder_of(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    return write_model(path, tensors, quantization_config=CONFIG)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_weight_is_what_its_blocks_stand_for(tmp_path: Path, dtype: str, nested: bool) -> None:
    tensors = checkpoint(model_tensors(), nested, dtype)
    model = load_model(folder_of(tmp_path / "base", tensors), "float64")
    names = [name.partition(".quant_state")[0] for name in tensors if ".quant_state" in name]
    assert len(names) == 14
    for name in names:
        expected = definition(tensors, name)
        assert np.array_equal(arrays_of(model)[name], expected.astype(np.float64)), name
        assert abs(expected.astype(np.float64) - model_tensors()[name]).max() < 0.6  # 4 bits of numbers up to 4


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([2, 4, 64]), st.booleans())
def test_ragged_blocks(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, blocksize: int, nested: bool
) -> None:
    from refimpl.loading.bitsandbytes_4bit import quantised_tensors
    from refimpl.loading.diagnostics import Diagnostics
    from refimpl.loading.safetensors_file import open_safetensors

    weight = np.random.default_rng([rows, columns]).standard_normal((rows, columns)).astype(np.float32)
    tensors = nf4_tensors("w", weight, nested, "float32", blocksize)
    path = tmp_path_factory.mktemp("nf4") / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    file = open_safetensors(path, Diagnostics())
    assert file is not None
    weights, used = quantised_tensors(file)
    assert used == tensors.keys() and weights["w"].problem is None and weights["w"].shape == (rows, columns)
    assert np.array_equal(weights["w"].read(), definition(tensors, "w"))


def test_qlora_on_it_merging_and_saving(tmp_path: Path) -> None:
    """An adapter is added to the numbers, and merged into them: a model that is not quantised any more."""
    model = load_model(folder_of(tmp_path / "base", checkpoint(model_tensors(), True, "bfloat16")), "float64")
    adapter, ids = random_adapter(BASE, 1), [3, 1, 4, 1, 5]
    rows = logits(model, [Request(ids, adapter)])[0]
    whole = merged(model, adapter)
    assert np.allclose(logits(whole, [Request(ids)])[0], rows, atol=1e-9 * abs(rows).max())
    save_model(whole, tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    again = load_model(tmp_path / "merged", "float64")
    assert np.array_equal(logits(again, [Request(ids)])[0], logits(whole, [Request(ids)])[0])


def changed_state(tensors: dict[str, np.ndarray], **changes: Any) -> dict[str, np.ndarray]:
    state = {k: v for k, v in (json.loads(bytes(tensors[STATE])) | changes).items() if v is not ...}
    return tensors | {STATE: state_bytes(state)}


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t: {k: x for k, x in t.items() if k != f"{Q}.absmax"}, f"lacks {Q}.absmax"),
        (lambda t: {k: x for k, x in t.items() if k != Q}, f"lacks {Q}"),
        (lambda t: {k: x for k, x in t.items() if k != STATE}, f"tensor {Q} has"),
        (lambda t: t | {Q: t[Q][:-1]}, f"has {Q} of 191 bytes, its quant_state makes it 192"),
        (lambda t: t | {f"{Q}.quant_map": NF4[::-1]}, "has another quant_map than NF4's"),
        (lambda t: t | {STATE: t[STATE][:-1]}, "has a quant_state that is not valid JSON"),
        (lambda t: changed_state(t, quant_type="fp4"), "that is not of nf4"),
        (lambda t: changed_state(t, shape=[32]), "shape [32]: it must be [d_out, d_in]"),
        (lambda t: changed_state(t, shape=[12, 32]), "has shape [12, 32], config.json makes it [32, 12]"),
        (lambda t: changed_state(t, blocksize=0), "blocksize 0: it must be"),
        (lambda t: changed_state(t, dtype="int8"), "dtype 'int8'"),
        (lambda t: changed_state(t, nested_offset=...), "nested_offset None: it must be a number"),
        (lambda t: t | {f"{Q}.nested_absmax": t[f"{Q}.nested_absmax"] * np.float32(np.nan)}, "holds NaN or inf"),
        (lambda t: {k.replace("nf4", "fp4"): x for k, x in t.items()}, "is 4-bit fp4; only nf4 is supported"),
    ],
)
def test_what_does_not_fit_together_is_named(tmp_path: Path, change: Any, says: str) -> None:
    folder = folder_of(tmp_path / "base", change(checkpoint(model_tensors(), True, "bfloat16")))
    with refused(WeightsError, str(folder), says):
        load_model(folder)
    assert any(says in problem for problem in inspect(folder).problems)


def test_a_cut_file_is_one_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "base", checkpoint(model_tensors(), True, "bfloat16"))
    raw = (folder / "model.safetensors").read_bytes()
    for length in range(0, len(raw), len(raw) // 50):
        (folder / "model.safetensors").write_bytes(raw[:length])
        with refused(LoracleError, "model.safetensors"):
            load_model(folder)


def test_inspect_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = checkpoint(model_tensors(), True, "bfloat16")
    folder = folder_of(tmp_path / "base", tensors)
    assert cli.main(["inspect", str(folder)]) == 0
    assert "nf4" in capsys.readouterr().out
    seen = inspect(folder)
    assert seen.dtypes["nf4"] == sum(x.size for name, x in model_tensors().items() if name.endswith("_proj.weight"))
    assert seen.bytes == sum(x.nbytes for x in tensors.values())
