"""gpt-oss as its checkpoints on the Hub are: experts in MXFP4, the rest in bfloat16."""

import json
from pathlib import Path

import numpy as np
from loading.folders import config_json, safetensors_bytes

from refimpl.arrays import DTYPES
from refimpl.loading.checkpoint import expected_tensors
from refimpl.loading.config_file import load_config
from refimpl.loading.mxfp4 import E2M1

CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]}


def quantised(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, scales) of the nearest numbers to [experts, d_in, d_out]: the scale brings the largest to 4 to 8."""
    groups = weight.swapaxes(1, 2).reshape(weight.shape[0], weight.shape[2], -1, 32)
    largest = np.maximum(np.abs(groups).max(axis=-1), 2.0**-100)
    exponents = np.floor(np.log2(largest)).astype(int) - 2
    distance = np.abs(groups[..., None] / 2.0 ** exponents[..., None, None] - E2M1)
    codes = distance.argmin(axis=-1).astype(np.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents + 127).astype(np.uint8)


def write_gpt_oss(
    folder: Path, seed: int, experts: int = 3, d_model: int = 32, width: int = 32
) -> dict[str, np.ndarray]:
    """Write config.json and model.safetensors of a random model of one layer; return its tensors. d_model and
    width (d_mlp) are multiples of 32."""
    config = config_json(
        architectures=["GptOssForCausalLM"],
        model_type="gpt_oss",
        num_hidden_layers=1,
        hidden_size=d_model,
        intermediate_size=width,
        num_local_experts=experts,
        num_experts_per_tok=2,
        sliding_window=4,
        attention_bias=True,
        quantization_config=CONFIG,
    )
    (folder / "config.json").write_text(json.dumps(config))
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in expected_tensors(load_config(folder)).items():
        if ".experts." not in name:
            tensors[name] = rng.standard_normal(shape).astype(DTYPES["bfloat16"])
    stack = "model.layers.0.mlp.experts"
    for name, d_in, d_out in (("gate_up_proj", d_model, 2 * width), ("down_proj", width, d_model)):
        parts = quantised(rng.standard_normal((experts, d_in, d_out)).astype(np.float32))
        tensors |= {f"{stack}.{name}_{part}": x for part, x in zip(("blocks", "scales"), parts, strict=True)}
        tensors[f"{stack}.{name}_bias"] = rng.standard_normal((experts, d_out)).astype(DTYPES["bfloat16"])
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return tensors
