"""Qwen 2, 2.5 and 3 (transformers, modeling_qwen2.py and modeling_qwen3.py).

Qwen2: q, k and v have a bias, which no key says. Qwen3: no such bias, but a norm over each head of q and k, before the
rotation. Both have a window only behind the flag use_sliding_window, and only in the layers from max_window_layers on.
"""

from typing import Any

from ..config import ATTENTION_MODULES, Norms
from .family import QKV, Family, Keys

DEFAULTS = {
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
OBEYS = ("use_sliding_window", "max_window_layers")


def slides(keys: Keys, layer: int) -> bool:
    """Whether a layer has the window."""
    first = keys.integer("max_window_layers", least=0)
    return keys.flag("use_sliding_window") and keys.given("sliding_window") and layer >= first


ONEVISION = (("LlavaOnevisionForConditionalGeneration", "llava_onevision"),)
ELSEWHERE: dict[str, Any] = {"torchtune": "halves", "megatron": True}
QWEN2 = Family(
    "Qwen2ForCausalLM",
    "qwen2",
    DEFAULTS,
    {"biased": QKV},
    obeys=OBEYS,
    slides=slides,
    **ELSEWHERE,
    gguf="qwen2",
    wrappers=ONEVISION,
)
QWEN3 = Family(
    "Qwen3ForCausalLM",
    "qwen3",
    {**DEFAULTS, "head_dim": 128},
    {"norms": Norms(q="self_attn.q_norm", k="self_attn.k_norm")},
    biases={"attention_bias": ATTENTION_MODULES},
    obeys=OBEYS,
    slides=slides,
    **ELSEWHERE,
    gguf="qwen3",
)
FAMILIES = (QWEN2, QWEN3)
