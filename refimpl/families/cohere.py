"""Command R7B and A (transformers, modeling_cohere2.py): a LayerNorm without a bias, of which attention and MLP both
read, one beside the other. Pairs are interleaved, and layers that see everything have no position."""

from dataclasses import replace
from typing import Any

from ..config import ATTENTION_MODULES, Norms
from .family import Family, Keys, Kinds


def kinds(keys: Keys, layers: Kinds) -> Kinds:
    """Layers that see everything do not turn."""
    return tuple(kind if kind.window else replace(kind, rope=None) for kind in layers)


def read(keys: Keys) -> dict[str, Any]:
    """What logits are divided by. Refuse a head_dim of its own, which the class does not read."""
    head_dim = keys.integer("hidden_size") // keys.integer("num_attention_heads")
    if keys.integer("head_dim", head_dim) != head_dim:
        keys.problem(f"head_dim is {keys.data['head_dim']}, and transformers makes it {head_dim} whatever it says")
    return {"logits_scaling": 1 / keys.positive("logit_scale")}


COHERE2 = Family(
    "Cohere2ForCausalLM",
    "cohere2",
    {
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "tie_word_embeddings": True,
        "bos_token_id": 5,
        "eos_token_id": 255001,
    },
    {
        "norms": Norms(centred=True, mlp_in=None),
        "parallel": True,
        "unrounded": ("norm_inner", "rope_product"),
    },
    biases={"attention_bias": ATTENTION_MODULES},
    read=read,
    obeys=("logit_scale", "sliding_window_pattern"),
    slides=lambda keys, layer: (layer + 1) % keys.integer("sliding_window_pattern") != 0,
    kinds=kinds,
    rope={"interleaved": True},
    eps="layer_norm_eps",
)
FAMILIES = (COHERE2,)
