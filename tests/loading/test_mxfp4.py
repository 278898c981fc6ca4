"""MXFP4 checkpoints: the numbers that their blocks stand for, and what damages them."""

import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading.folders import refused, safetensors_bytes
from loading.mxfp4_writer import quantised, write_gpt_oss
from support.build import random_adapter

from refimpl import Request, cli, load_model, logits
from refimpl.errors import WeightsError
from refimpl.formats.peft import save_adapter
from refimpl.loading.checkpoint import open_checkpoint
from refimpl.loading.config_file import load_config
from refimpl.loading.diagnostics import Diagnostics
from refimpl.loading.mxfp4 import numbers
from refimpl.weights import Linear

EXPERTS = "model.layers.0.mlp.experts"


def definition(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """One number after the other, by the bits of e2m1: sign, two of exponent, one of mantissa. [d_out, d_in]."""
    d_out, groups, _ = blocks.shape
    result = np.zeros((d_out, groups * 32))
    for i, j in np.ndindex(result.shape):
        byte = int(blocks[i, j // 32, j % 32 // 2])
        code = byte & 15 if j % 2 == 0 else byte >> 4
        sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
        value = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
        result[i, j] = (-1) ** sign * value * 2.0 ** (int(scales[i, j // 32]) - 127)
    return result


@given(seed=st.integers(0, 99), low=st.sampled_from([0, 100, 252]))
def test_the_numbers_are_their_definition_and_exact(seed: int, low: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (3, 2, 16)).astype(np.uint8)
    scales = rng.integers(low, low + (1 if low == 252 else 30), (3, 2)).astype(np.uint8)
    np.testing.assert_array_equal(numbers(blocks, scales).astype(np.float64), definition(blocks, scales))


def test_a_scale_that_is_no_number_and_numbers_that_are_too_large() -> None:
    blocks, scales = np.full((1, 2, 16), 0x17, np.uint8), np.array([[255, 254]], np.uint8)
    y = numbers(blocks, scales)[0]
    assert np.isnan(y[:32]).all()
    np.testing.assert_array_equal(y[32:34], [np.inf, np.float32(2.0**126)])


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_every_expert_is_what_its_blocks_stand_for(tmp_path: Path, dtype: str) -> None:
    stored = write_gpt_oss(tmp_path, 0)
    model = load_model(tmp_path, dtype)
    gate_up, down = (
        [
            definition(*pair)
            for pair in zip(stored[f"{EXPERTS}.{name}_blocks"], stored[f"{EXPERTS}.{name}_scales"], strict=True)
        ]
        for name in ("gate_up_proj", "down_proj")
    )
    for expert in range(3):
        for name, expected in (
            ("gate_proj", gate_up[expert][0::2]),
            ("up_proj", gate_up[expert][1::2]),
            ("down_proj", down[expert]),
        ):
            linear = model.linear((0, f"mlp.experts.{expert}.{name}"))
            np.testing.assert_array_equal(linear.weight.astype(np.float64), expected)
            assert linear.weight.flags.c_contiguous
    bias = stored[f"{EXPERTS}.gate_up_proj_bias"]
    np.testing.assert_array_equal(model.linear((0, "mlp.experts.2.up_proj")).bias, bias[2, 1::2].astype(dtype))


def test_blocks_and_scales_may_lie_in_different_files(tmp_path: Path) -> None:
    stored = write_gpt_oss(tmp_path, 1)
    expected = logits(load_model(tmp_path), [Request([3, 1, 4])])[0]
    (tmp_path / "model.safetensors").unlink()
    shards: dict[str, dict[str, np.ndarray]] = {"a.safetensors": {}, "b.safetensors": {}}
    for name, x in stored.items():
        shards["b.safetensors" if name.endswith("_scales") else "a.safetensors"][name] = x
    for name, tensors in shards.items():
        (tmp_path / name).write_bytes(safetensors_bytes(tensors))
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(str({"weight_map": weight_map}).replace("'", '"'))
    np.testing.assert_array_equal(logits(load_model(tmp_path), [Request([3, 1, 4])])[0], expected)


def test_reading_a_module_makes_no_other_expert(tmp_path: Path) -> None:
    write_gpt_oss(tmp_path, 2, experts=40, d_model=64, width=64)
    diagnostics = Diagnostics()
    tensors = open_checkpoint(tmp_path, load_config(tmp_path), diagnostics)
    assert not diagnostics.problems
    tracemalloc.start()
    weight = tensors["model.layers.0.mlp.experts.7.up_proj.weight"].read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * weight.nbytes / 2  # of 40 experts with two such modules


def test_experts_stay_packed_and_answer_as_if_they_did_not(tmp_path: Path) -> None:
    stored = write_gpt_oss(tmp_path, 2, experts=40, d_model=64, width=64)
    packed = sum(x.nbytes for name, x in stored.items() if name.endswith(("_blocks", "_scales")))
    model = load_model(tmp_path, "float32")
    experts = {name: linear for name, linear in model.layers[0].linears.items() if ".experts." in name}
    assert sum(x.nbytes for linear in experts.values() for x in linear.packing) == packed
    assert model.nbytes - packed < sum(linear.weight.nbytes for linear in experts.values()) / 2
    plain = {name: Linear(linear.weight, linear.bias) for name, linear in model.layers[0].linears.items()}
    eager = replace(model, layers=(replace(model.layers[0], linears=plain),))
    requests = [Request([3, 1, 4, 1, 5], random_adapter(model.config, 1, modules=model.config.layer_modules))]
    np.testing.assert_array_equal(logits(model, requests)[0], logits(eager, requests)[0])


def test_numbers_that_the_type_does_not_hold_are_found_when_it_is_loaded(tmp_path: Path) -> None:
    tensors = write_gpt_oss(tmp_path, 2)
    scales = tensors[f"{EXPERTS}.down_proj_scales"]
    tensors[f"{EXPERTS}.down_proj_scales"] = np.where(np.arange(scales.size).reshape(scales.shape) == 5, 200, scales)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    load_model(tmp_path, "bfloat16")
    with refused(WeightsError, "experts.down_proj has values too large for float16"):
        load_model(tmp_path, "float16")


def test_a_merged_folder_answers_as_the_base_with_the_adapter(tmp_path: Path) -> None:
    """LoRA on every module, routers and experts too, in weights that were packed: written as they are multiplied."""
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    write_gpt_oss(tmp_path / "base", 3)
    model = load_model(tmp_path / "base", "float64")
    adapter = random_adapter(model.config, 1, modules=model.config.layer_modules)
    save_adapter(adapter, tmp_path / "adapter/it", config=model.config)
    arguments = [str(tmp_path / "base"), str(tmp_path / "adapter/it"), "--out", str(tmp_path / "merged")]
    assert cli.main(["merge", *arguments, "--dtype", "float64"]) == 0
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert "quantization_config" not in config
    expected = logits(model, [Request([3, 1, 4], adapter)])[0]
    actual = logits(load_model(tmp_path / "merged", "float64"), [Request([3, 1, 4])])[0]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


GATE_UP = f"{EXPERTS}.gate_up_proj"
DAMAGED: dict[str, tuple[Any, str]] = {
    "a scale that is NaN": (
        lambda t: {f"{GATE_UP}_scales": at(t[f"{GATE_UP}_scales"], (1, 4, 0), 255)},
        f"tensor {GATE_UP} has 255 in {GATE_UP}_scales at [1, 4, 0], which is NaN",
    ),
    "a number that is too large": (
        lambda t: {f"{GATE_UP}_scales": np.full_like(t[f"{GATE_UP}_scales"], 254)},
        f"tensor {GATE_UP} holds NaN or inf",
    ),
    "no scales": (lambda t: {f"{GATE_UP}_scales": None}, f"tensor {GATE_UP} is MXFP4 and lacks {GATE_UP}_scales"),
    "no blocks": (lambda t: {f"{GATE_UP}_blocks": None}, f"tensor {GATE_UP} is MXFP4 and lacks {GATE_UP}_blocks"),
    "blocks of another size": (
        lambda t: {f"{GATE_UP}_blocks": t[f"{GATE_UP}_blocks"][..., :8]},
        f"has {GATE_UP}_blocks [3, 64, 1, 8], which must be [experts, d_out, blocks, 16]",
    ),
    "scales of another shape": (
        lambda t: {f"{GATE_UP}_scales": t[f"{GATE_UP}_scales"][:2]},
        f"has {GATE_UP}_scales [2, 64, 1], its {GATE_UP}_blocks [3, 64, 1, 16] make it [3, 64, 1]",
    ),
    "another model's": (
        lambda t: {f"{GATE_UP}_{part}": t[f"{GATE_UP}_{part}"][:, :38] for part in ("blocks", "scales")},
        f"tensor {GATE_UP} has shape [3, 32, 38], config.json makes it [3, 32, 64]",
    ),
    "both forms": (
        lambda t: {GATE_UP: np.zeros((3, 32, 64), np.float32)},
        f"tensor {GATE_UP} is also in model.safetensors",
    ),
    "scales of floats": (
        lambda t: {f"{GATE_UP}_scales": t[f"{GATE_UP}_scales"].astype(np.float32)},
        f"tensor {GATE_UP} is MXFP4 and lacks {GATE_UP}_scales",
    ),
}


def at(x: np.ndarray, index: tuple[int, ...], value: int) -> np.ndarray:
    """A copy with one number changed."""
    x = x.copy()
    x[index] = value
    return x


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_damaged_is_refused_in_one_line(tmp_path: Path, damage: str, capsys: Any) -> None:
    stored: Mapping[str, Any] = write_gpt_oss(tmp_path, 0)
    change, says = DAMAGED[damage]
    tensors = {name: x for name, x in (stored | change(stored)).items() if x is not None}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    with refused(WeightsError, str(tmp_path), says):
        load_model(tmp_path)
    assert cli.main(["inspect", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err


def test_the_writer_takes_the_nearest_number() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2, 64, 5)).astype(np.float32)
    blocks, scales = quantised(weight)
    back = numbers(blocks, scales).swapaxes(1, 2)
    assert back.shape == weight.shape
    assert np.abs(back - weight).max() <= np.abs(weight).max() / 4
