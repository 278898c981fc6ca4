"""EXAONE 4 (transformers, modeling_exaone4.py): norms after the blocks and none before them, q and k normalised over
each head. The larger model slides in three layers of four, and the others have no position."""

from dataclasses import replace

from ..config import Norms
from .family import Family, Keys, Kinds


def kinds(keys: Keys, layers: Kinds) -> Kinds:
    """Where some layers slide, the others do not turn."""
    if not keys.given("sliding_window"):
        return layers
    return tuple(kind if kind.window else replace(kind, rope=None) for kind in layers)


EXAONE4 = Family(
    "Exaone4ForCausalLM",
    "exaone4",
    {
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    {
        "norms": Norms(
            attention_in=None,
            q="self_attn.q_norm",
            k="self_attn.k_norm",
            attention_out="post_attention_layernorm",
            mlp_in=None,
            mlp_out="post_feedforward_layernorm",
        )
    },
    obeys=("sliding_window_pattern",),
    slides=lambda keys, layer: (
        keys.given("sliding_window") and (layer + 1) % keys.integer("sliding_window_pattern") != 0
    ),
    kinds=kinds,
)
FAMILIES = (EXAONE4,)
