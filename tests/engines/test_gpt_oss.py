"""gpt-oss beyond what all families with experts have (test_experts.py): MXFP4 as transformers dequantises it, bit for
bit, a folder of it end to end, and drawn configurations."""

import json
import shutil
from pathlib import Path
from typing import Any

import hugging_face as hf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loading.folders import safetensors_bytes
from loading.mxfp4_writer import CONFIG, quantised
from safetensors.numpy import load_file
from test_experts import PROMPTS, SIZES, assert_same, lora_kinds, ours, random_adapter, theirs, write_merged

import refimpl
from refimpl.loading.mxfp4 import NAN, numbers

mxfp4 = pytest.importorskip("transformers.integrations.mxfp4", reason="pip install -e .[peft]")
T, torch = hf.transformers, hf.torch


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("lowest", [0, 60, 250])
def test_blocks_are_what_transformers_makes_of_them(dtype: str, lowest: int) -> None:
    """Every code and every scale but NaN; what is inf there is inf here."""
    rng = np.random.default_rng(lowest)
    blocks = rng.integers(0, 256, (3, 70, 2, 16)).astype(np.uint8)
    scales = rng.integers(lowest, NAN if lowest == 250 else lowest + 80, (3, 70, 2)).astype(np.uint8)
    dequantised = mxfp4._convert_moe_packed_tensors(
        torch.as_tensor(blocks), torch.as_tensor(scales), dtype=getattr(torch, dtype)
    )
    mine = numbers(blocks, scales).astype(np.float64).swapaxes(1, 2)
    expected = dequantised.to(torch.float64).numpy()
    if dtype == "float64":  # which has room for what is too large for the others
        expected = np.where(np.abs(expected) > np.finfo(np.float32).max, np.copysign(np.inf, expected), expected)
    np.testing.assert_array_equal(mine, expected)
    assert np.isinf(mine).any() == (lowest == 250)


def test_a_folder_in_mxfp4_end_to_end(tmp_path: Path) -> None:
    """The base as the Hub holds it, and an adapter on every module of it, in one mixed batch: transformers dequantises
    the folder itself, and the merged models are made of that."""
    sizes = SIZES | {"hidden_size": 32, "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2}
    hf.write_model(T.GptOssConfig(**sizes, head_dim=8, sliding_window=5), tmp_path / "plain", 7, "bfloat16")
    packed = tmp_path / "packed"
    write_packed(tmp_path / "plain", packed)
    with hf.quiet():
        model = T.AutoModelForCausalLM.from_pretrained(
            packed, dtype=torch.bfloat16, quantization_config=T.Mxfp4Config(dequantize=True)
        )
    model.config.__dict__.pop("quantization_config", None)
    state = {name: x.to(torch.float64).numpy() for name, x in model.state_dict().items()}
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    (unpacked / "model.safetensors").write_bytes(safetensors_bytes(state))
    shutil.copy(tmp_path / "plain/config.json", unpacked)
    config = refimpl.load_model(packed).config
    adapters = [None, random_adapter(config, 1, lora_kinds(config)["everything"])]
    requests, logits, chosen = [], [], []
    for i, adapter in enumerate(adapters):
        folder = write_merged(unpacked, adapter, tmp_path / f"merged-{i}") if adapter else unpacked
        parts = theirs(folder, PROMPTS[i : i + 2])
        logits += parts[0]
        chosen += parts[1]
        requests += [refimpl.Request(prompt, adapter) for prompt in PROMPTS[i : i + 2]]
    assert_same((logits, chosen), ours(packed, requests))


def write_packed(plain: Path, packed: Path) -> None:
    """Write a folder with its experts in MXFP4."""
    tensors: dict[str, Any] = {}
    for name, x in load_file(plain / "model.safetensors").items():
        if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj"):
            blocks, scales = quantised(x.astype(np.float32) / np.sqrt(x.shape[1]))
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            tensors[name] = x
    packed.mkdir()
    (packed / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    config = json.loads((plain / "config.json").read_text()) | {"quantization_config": CONFIG}
    (packed / "config.json").write_text(json.dumps(config))


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes and rules of a gpt-oss, and keys that are absent."""
    kv_heads, experts, layers = draw(st.sampled_from([1, 2])), draw(st.integers(2, 5)), draw(st.integers(1, 3))
    config = {
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw(st.sampled_from([1, 3])),
        "hidden_size": draw(st.sampled_from([10, 24])),
        "intermediate_size": draw(st.sampled_from([3, 20])),
        "head_dim": draw(st.sampled_from([4, 6])),
        "num_local_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "sliding_window": draw(st.sampled_from([1, 3, 64])),
        "swiglu_limit": draw(st.sampled_from([0.5, 7.0])),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
    }
    if draw(st.booleans()):
        config["layer_types"] = draw(
            st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=layers, max_size=layers)
        )
    if draw(st.booleans()):
        yarn = {"rope_type": "yarn", "rope_theta": 5e3, "factor": 4.0, "original_max_position_embeddings": 8}
        config["rope_parameters"] = yarn | {"truncate": draw(st.booleans())}
    return config


ABSENT = (
    "layer_types",
    "rope_parameters",
    "swiglu_alpha",
    "swiglu_limit",
    "head_dim",
    "rms_norm_eps",
    "attention_bias",
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=configs(), seed=st.integers(0, 99), data=st.data())
def test_drawn_configurations(tmp_path_factory: Any, changes: dict[str, Any], seed: int, data: st.DataObject) -> None:
    """The base, and an adapter on every module; keys that the class fills in may be absent from config.json."""
    folder = tmp_path_factory.mktemp("drawn")
    defaults, full = T.GptOssConfig().to_dict(), T.GptOssConfig(**SIZES | changes)
    hf.write_model(full, folder / "base", seed)
    file = folder / "base/config.json"
    stored = json.loads(file.read_text())
    for key in ABSENT:
        default = defaults[key]
        is_default = stored[key] == default if key != "layer_types" else "layer_types" not in changes
        if is_default and data.draw(st.booleans(), label=f"without {key}"):
            del stored[key]
    file.write_text(json.dumps(stored))
    config = refimpl.load_model(folder / "base").config
    adapter = random_adapter(config, seed, lora_kinds(config)["everything"])
    merged = write_merged(folder / "base", adapter, folder / "merged")
    first, second = theirs(folder / "base", PROMPTS[:2]), theirs(merged, PROMPTS[:2])
    requests = [refimpl.Request(prompt, lora) for lora in (None, adapter) for prompt in PROMPTS[:2]]
    assert_same((first[0] + second[0], first[1] + second[1]), ours(folder / "base", requests))


PARAMETERS: dict[str, dict[str, Any]] = {
    "some layers": {
        "target_modules": "all-linear",
        "target_parameters": [
            "0.mlp.experts.gate_up_proj",
            "0.mlp.experts.down_proj",
            "1.mlp.experts.gate_up_proj",
        ],
    },
    "down alone": {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]},
    "router": {"target_modules": ["o_proj"], "target_parameters": ["mlp.router.weight"]},
    "rslora": {"target_modules": ["v_proj"], "target_parameters": ["mlp.experts.gate_up_proj"], "use_rslora": True},
}


@pytest.mark.parametrize("targets", PARAMETERS)
def test_adapters_of_peft_on_experts(tmp_path: Path, targets: str) -> None:
    """As people train gpt-oss: target_parameters, gate and up in one pair, saved and run by PEFT itself."""
    sizes = SIZES | {"num_hidden_layers": 2, "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8}
    hf.write_model(T.GptOssConfig(**sizes, sliding_window=4), tmp_path / "base", 3)
    config = hf.peft.LoraConfig(r=2, lora_alpha=3, task_type="CAUSAL_LM", **PARAMETERS[targets])
    with hf.quiet():
        model = hf.peft.get_peft_model(T.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                hf.fill(parameter, rng, 0.3)
    with hf.quiet():
        model.save_pretrained(tmp_path / "adapter")
    expected = hf.alone(tmp_path / "base", {"it": tmp_path / "adapter"}, PROMPTS[:2] * 2, ["it", "it", *[hf.BASE] * 2])
    base = refimpl.load_model(tmp_path / "base", "float64")
    adapter = refimpl.load_adapter(tmp_path / "adapter", base.config)
    requests = [refimpl.Request(prompt, lora) for lora in (adapter, None) for prompt in PROMPTS[:2]]
    for actual, row in zip(refimpl.logits(base, requests), expected, strict=True):
        assert np.abs(actual - row).max() <= 1e-9 * np.abs(row).max()
