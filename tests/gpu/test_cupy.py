"""The same array code on a GPU: device="cuda" through CuPy gives what the CPU gives."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.build import random_adapter, random_model

import refimpl
from refimpl.arrays import device_namespace
from refimpl.config import LAYER_MODULES, ModelConfig, module_name
from refimpl.errors import DeviceError
from refimpl.weights import Model

try:
    device_namespace("cuda")
except DeviceError as error:
    pytest.skip(f"{error} (this test runs on a machine with an NVIDIA GPU)", allow_module_level=True)

CONFIG = ModelConfig(40, 24, 32, 2, 6, 2, 4, sliding_window=5, max_position_embeddings=64, eos_token_ids=(1,))


def saved(model: Model, folder: Path) -> Path:
    """The model as a Hugging Face folder."""
    c = model.config
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope.theta,
        "sliding_window": c.sliding_window,
        "tie_word_embeddings": False,
        "max_position_embeddings": c.max_position_embeddings,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {"model.embed_tokens.weight": model.embed_tokens, "model.norm.weight": model.norm}
    tensors["lm_head.weight"] = model.lm_head.weight
    for i, layer in enumerate(model.layers):
        for norm, weight in layer.norms.items():
            tensors[f"model.layers.{i}.{norm}.weight"] = weight
        for module in LAYER_MODULES:
            tensors[f"{module_name((i, module))}.weight"] = model.linear((i, module)).weight
    save_file({name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_a_mixed_batch_on_the_gpu_equals_the_cpu(tmp_path: Path, dtype: str) -> None:
    folder = saved(random_model(CONFIG, 3), tmp_path)
    pool = [random_adapter(CONFIG, i, r, alpha=2.5 * r, use_rslora=i == 1) for i, r in enumerate((3, 5, 8))]
    rng = np.random.default_rng(0)
    who = [pool[0], None, pool[1], [(pool[0], 0.5), (pool[2], -1.0)], pool[2]]
    requests = [refimpl.Request(rng.integers(0, 40, 3 + 4 * i).tolist(), a) for i, a in enumerate(who)]
    host = refimpl.load_model(folder, dtype)
    device = refimpl.load_model(folder, dtype, device="cuda")
    tolerance = {"float64": 1e-12, "float32": 1e-4, "float16": 3e-2, "bfloat16": 2e-1}[dtype]
    for a, b in zip(refimpl.logits(host, requests), refimpl.logits(device, requests), strict=True):
        assert a.shape == b.shape
        assert not np.isnan(b).any()
        assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(a).max())
    if dtype in ("float64", "float32"):
        texts = [refimpl.generate(m, requests, max_new_tokens=8) for m in (host, device)]
        assert [o.token_ids for o in texts[0]] == [o.token_ids for o in texts[1]]
