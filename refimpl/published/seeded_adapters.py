"""The two adapters that NVIDIA's own tests draw from seed 42, made anew from the published recipe.

Both recipes are in NVIDIA/TensorRT-LLM, tests/unittest/llmapi/lora_test_utils.py. Nobody trained these weights: they
are noise, so that whoever has the base can make the same adapter, and must get the same answer.
"""

from collections.abc import Iterator

import numpy as np

from ..adapter import Adapter, LoraTensors, PeftConfig
from ..arrays import Array
from ..config import Module
from .torch_randn import manual_seed, randn_float16, randn_float16_of_2_13, randn_float32

QKV = ("q_proj", "k_proj", "v_proj")
SEED, RANK = 42, 8


def tinyllama_nemo(torch: str = "2.8") -> Adapter:
    """create_mock_nemo_lora_checkpoint(seed=42) for TinyLlama-1.1B, split into q, k and v as PEFT has them.

    NeMo knows one module, attn_qkv: an A that q, k and v share, and a B whose rows are those of q, then k, then v. It
    has no alpha, and TensorRT-LLM applies no scale to it: alpha = r here. float16; A before B, layer by layer.
    The test and the answer that it demands are of July 2025, when torch's float16 randn was still the old one, so that
    is what is drawn; torch="2.13" gives the other adapter, which today's torch makes of the same lines.
    """
    layers, hidden, kv = 22, 2048, 4 * 64
    ends = np.cumsum([hidden, kv, kv])
    lora: dict[Module, LoraTensors] = {}
    for layer, (A, B) in enumerate(_fused(layers, hidden, int(ends[-1]), torch)):
        for module, rows in zip(QKV, np.split(B, ends[:-1]), strict=True):
            lora[(layer, module)] = LoraTensors(A, rows)
    return Adapter("tinyllama-nemo-seed-42", PeftConfig(RANK, RANK, target_modules=QKV), lora)


def _fused(layers: int, d_in: int, d_out: int, torch: str) -> Iterator[tuple[Array, Array]]:
    """linear_in [r, d_in] and linear_out [d_out, r] of each layer, in the order in which they are drawn."""
    randn = {"2.8": randn_float16, "2.13": randn_float16_of_2_13}[torch]
    state = manual_seed(SEED)
    for _ in range(layers):
        A = _times(randn(state, (RANK, d_in)), 0.02)
        yield A, _times(randn(state, (d_out, RANK)), 0.02)


def qwen3_layer_0() -> Adapter:
    """create_qwen3_lora_adapter() for Qwen3-0.6B: q, k and v of layer 0 and nothing else; float32.

    Their adapter_config.json names the modules and not the layer; ours says layers_to_transform, or the other 27 layers
    would be missing. The numbers are torch's on a CPU with AVX2.
    """
    hidden, d_out = 1024, {"q_proj": 16 * 128, "k_proj": 8 * 128, "v_proj": 8 * 128}
    state = manual_seed(SEED)
    lora: dict[Module, LoraTensors] = {}
    for module in QKV:
        A = _times(randn_float32(state, (RANK, hidden)), 0.1)
        lora[(0, module)] = LoraTensors(A, _times(randn_float32(state, (d_out[module], RANK)), 0.1))
    config = PeftConfig(RANK, RANK, target_modules=QKV, layers_to_transform=(0,))
    return Adapter("qwen3-layer-0-seed-42", config, lora)


def _times(x: Array, factor: float) -> Array:
    """x * factor as torch multiplies by a Python number: in float32, then rounded to x's type. Read-only."""
    product = (x.astype(np.float32) * np.float32(factor)).astype(x.dtype)
    product.flags.writeable = False
    return product
