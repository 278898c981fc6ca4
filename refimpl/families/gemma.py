"""Gemma 1, 2 and 3, text (transformers, modeling_gemma.py, modeling_gemma2.py, modeling_gemma3.py).

The embedding is multiplied by sqrt(hidden_size), a tensor of the model's type. A norm's weight is what is added to 1.
Gemma 2 and 3 have norms before and after each block; 2 caps its scores and logits, 3 normalises q and k and turns its
sliding layers by a rope of their own.
"""

import math
from typing import Any

from ..config import ATTENTION_MODULES, Norms, Rope
from .family import Family, Keys

TANH = {"gelu_pytorch_tanh": "gelu_tanh"}
EOS = {"bos_token_id": 2, "eos_token_id": 1}
COMMON = {**EOS, "rms_norm_eps": 1e-6, "head_dim": 256, "tie_word_embeddings": True}
BIASES = {"attention_bias": ATTENTION_MODULES}
OBEYS = ("query_pre_attn_scalar",)
ROUNDING = {"tensor_multiplier": True, "unrounded": ("norm_inner",)}
CAPS = {"attn_logit_softcapping": "attention_softcap", "final_logit_softcapping": "logits_softcap"}
SANDWICH: dict[str, Any] = {
    "attention_out": "post_attention_layernorm",
    "mlp_in": "pre_feedforward_layernorm",
    "mlp_out": "post_feedforward_layernorm",
    "plus_one": True,
}


def read(keys: Keys) -> dict[str, Any]:
    """The factor of the embedding, and that of the scores where a key says it."""
    fields: dict[str, Any] = {"embedding_multiplier": math.sqrt(keys.integer("hidden_size"))}
    if keys.given("query_pre_attn_scalar"):
        fields["attention_scale"] = keys.positive("query_pre_attn_scalar") ** -0.5
    return fields


GEMMA = Family(
    "GemmaForCausalLM",
    "gemma",
    {**COMMON, "max_position_embeddings": 8192, "num_key_value_heads": 16},
    {"norms": Norms(plus_one=True), **ROUNDING},
    biases=BIASES,
    read=read,
    activations={**TANH, "gelu": "gelu_tanh"},  # what "gelu" means in the first checkpoints
    torchtune="neighbours",
    megatron=True,
    gguf="gemma",
)
GEMMA2 = Family(
    "Gemma2ForCausalLM",
    "gemma2",
    {
        **COMMON,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    {"norms": Norms(**SANDWICH), **ROUNDING},
    numbers=CAPS,
    biases=BIASES,
    read=read,
    obeys=OBEYS,
    activations=TANH,
    slides=lambda keys, layer: layer % 2 == 0,
    torchtune="neighbours",
    megatron=True,
    gguf="gemma2",
)
GEMMA3 = Family(
    "Gemma3ForCausalLM",
    "gemma3_text",
    {
        **COMMON,
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_local_base_freq": 1e4,
    },
    {"norms": Norms(q="self_attn.q_norm", k="self_attn.k_norm", **SANDWICH), **ROUNDING},
    numbers=CAPS,
    biases=BIASES,
    read=read,
    obeys=(*OBEYS, "sliding_window_pattern", "rope_local_base_freq"),
    activations=TANH,
    slides=lambda keys, layer: (layer + 1) % keys.integer("sliding_window_pattern") != 0,
    default_theta=1e6,
    local_rope=lambda keys, rope: Rope(keys.positive("rope_local_base_freq")),
    gguf="gemma3",
    wrappers=(("Gemma3ForConditionalGeneration", "gemma3"),),
)
FAMILIES = (GEMMA, GEMMA2, GEMMA3)
