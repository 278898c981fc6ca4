"""GPTQ and AWQ checkpoints: the numbers that their words stand for, and what contradicts itself."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading.folders import BASE, model_tensors, refused, write_model
from loading.packed_writer import AWQ, GPTQ, checkpoint, random_weight
from loading.test_weights import arrays_of
from support.build import random_adapter

from refimpl import Request, cli, load_model, logits
from refimpl.errors import ConfigError, WeightsError
from refimpl.formats.peft import save_adapter
from refimpl.loading import gptq_awq
from refimpl.loading.config_file import load_config
from refimpl.tools.inspect import inspect

SHAPE = dataclasses.replace(BASE, hidden_size=16, intermediate_size=32)
SIZES = {"hidden_size": 16, "intermediate_size": 32}
NAME = "model.layers.0.self_attn.q_proj"


def write(folder: Path, config: dict[str, Any], **changes: Any) -> dict[str, np.ndarray]:
    """Write a small model, changed by name (None: without it); return the numbers of its packed weights."""
    stored, weights = checkpoint(model_tensors(SHAPE), config)
    stored = {name: x for name, x in (stored | changes).items() if x is not None}
    write_model(folder, stored, quantization_config=config, **SIZES)
    return weights


@pytest.mark.parametrize(
    "config",
    [GPTQ, GPTQ | {"bits": 8}, GPTQ | {"bits": 2, "group_size": 8}, GPTQ | {"checkpoint_format": "gptq_v2"}, AWQ],
    ids=["gptq", "8 bits", "2 bits", "gptq_v2", "awq"],
)
@pytest.mark.parametrize("at_once", [1, 512])
def test_every_weight_is_what_its_words_stand_for(
    tmp_path: Path, config: dict[str, Any], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq_awq, "COLUMNS_AT_ONCE", at_once)
    weights = write(tmp_path / "base", config)
    model = load_model(tmp_path / "base", "float64")
    assert len(weights) == 14
    for name, expected in weights.items():
        np.testing.assert_array_equal(arrays_of(model)[name], expected.astype(np.float64))
    assert logits(model, [Request([3, 1, 4])])[0].shape == (3, 13)
    assert not inspect(tmp_path / "base").problems


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_products_are_rounded_to_the_type_of_the_scales(tmp_path: Path, dtype: Any) -> None:
    parts, expected = random_weight(np.random.default_rng(3), NAME, (SHAPE.num_attention_heads * 8, 16), AWQ, dtype)
    write(tmp_path / "base", AWQ, **parts)
    weight = load_model(tmp_path / "base", "float64").linear((0, "q_proj")).weight
    np.testing.assert_array_equal(weight, expected.astype(np.float64))


def test_biases_of_zeros_that_autogptq_writes_change_nothing(tmp_path: Path) -> None:
    write(tmp_path / "base", GPTQ)
    write(tmp_path / "biased", GPTQ, **{f"{NAME}.bias": np.zeros(32, np.float16)})
    first, second = (logits(load_model(tmp_path / name), [Request([1, 2])])[0] for name in ("base", "biased"))
    np.testing.assert_array_equal(first, second)
    write(tmp_path / "other", GPTQ, **{f"{NAME}.bias": np.full(32, 0.1, np.float16)})
    with refused(WeightsError, f"tensor {NAME}.bias [32] is not one of the model's"):
        load_model(tmp_path / "other")


@pytest.mark.parametrize("config", [GPTQ, AWQ], ids=["gptq", "awq"])
def test_a_merged_folder_answers_as_the_base_with_the_adapter(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path / "base", config)
    model = load_model(tmp_path / "base", "float64")
    adapter = random_adapter(model.config, 1)
    save_adapter(adapter, tmp_path / "adapter")
    arguments = [str(tmp_path / "base"), str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]
    assert cli.main(["merge", *arguments, "--dtype", "float64"]) == 0
    expected = logits(model, [Request([3, 1, 4], adapter)])[0]
    actual = logits(load_model(tmp_path / "merged", "float64"), [Request([3, 1, 4])])[0]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


PARTS = random_weight(np.random.default_rng(0), NAME, (32, 16), GPTQ)[0]
DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "no zeros": ({f"{NAME}.qzeros": None}, f"lacks {NAME}.qzeros"),
    "no scales": ({f"{NAME}.scales": None}, f"lacks {NAME}.scales"),
    "rows missing": (
        {f"{NAME}.qweight": PARTS[f"{NAME}.qweight"][:1]},
        f"{NAME}.g_idx that does not give each of 8 inputs",
    ),
    "columns missing": (
        {f"{NAME}.scales": PARTS[f"{NAME}.scales"][:, :8]},
        f"has {NAME}.scales [4, 8], its {NAME}.qweight makes it [4, 32]",
    ),
    "a group too many": ({f"{NAME}.g_idx": np.full(16, 4, np.int32)}, "one of 4 groups"),
    "a negative group": ({f"{NAME}.g_idx": np.full(16, -1, np.int32)}, "one of 4 groups"),
    "words of floats": (
        {f"{NAME}.qweight": PARTS[f"{NAME}.scales"]},
        f"has {NAME}.qweight of F16: it must be I32",
    ),
    "scales of integers": (
        {f"{NAME}.scales": PARTS[f"{NAME}.qzeros"]},
        f"has {NAME}.scales of I32: scales are floats",
    ),
    "a vector": (
        {f"{NAME}.scales": PARTS[f"{NAME}.scales"][0]},
        f"has {NAME}.scales [32]: it must be a matrix",
    ),
    "a scale that is NaN": (
        {f"{NAME}.scales": np.full((4, 32), np.nan, np.float16)},
        f"{NAME}.weight holds NaN or inf",
    ),
    "a zero of 16": ({f"{NAME}.qzeros": np.full((4, 4), -1, np.int32)}, "that is 16 with the 1 that GPTQ adds"),
    "both": (
        {f"{NAME}.weight": np.zeros((32, 16), np.float32)},
        f"tensor {NAME}.weight is also in model.safetensors",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_does_not_fit_together_is_named(tmp_path: Path, damage: str) -> None:
    changes, says = DAMAGED[damage]
    write(tmp_path / "base", GPTQ, **changes)
    with refused(WeightsError, str(tmp_path), says):
        load_model(tmp_path / "base")


def test_words_without_a_config_that_says_how_to_read_them(tmp_path: Path) -> None:
    stored, _ = checkpoint(model_tensors(SHAPE), GPTQ)
    write_model(tmp_path / "base", stored, **SIZES)
    with refused(WeightsError, "has a .qweight, and config.json has no quantization_config of gptq or awq"):
        load_model(tmp_path / "base")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (GPTQ | {"bits": 3}, "has bits 3: 2, 4, 8 are supported of gptq"),
        ({"quant_method": "gptq"}, "has bits None"),
        (GPTQ | {"checkpoint_format": "marlin"}, "has checkpoint_format 'marlin'"),
        (GPTQ | {"is_marlin_format": True}, "has checkpoint_format"),
        (GPTQ | {"dynamic": {"-:.*q_proj": {}}}, "has dynamic"),
        (AWQ | {"bits": 8}, "has bits 8: only 4 is supported of awq"),
        (AWQ | {"version": "gemv"}, "has version 'gemv': only 'gemm'"),
        (AWQ | {"zero_point": False}, "has zero_point False: only True"),
        ({"quant_method": "aqlm"}, "quant_method 'aqlm': only"),
    ],
)
def test_other_layouts_are_refused_by_name(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    write_model(tmp_path / "base", {}, quantization_config=config)
    with refused(ConfigError, "config.json: quantization_config", says):
        load_config(tmp_path / "base")
