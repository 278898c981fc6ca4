"""DeepSeek V2 and V3 (transformers, modeling_deepseek_v2.py and modeling_deepseek_v3.py): multi-head latent attention.
R1 is a V3."""

import math
from typing import Any

from ..config import Mla
from .family import LLAMA_BIASES, Family, Keys

MLA_KEYS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def read_mla(keys: Keys) -> dict[str, Any]:
    """The widths of the attention, and the scale of its scores: 1/sqrt(head_dim), times mscale^2 with YaRN."""
    heads = keys.integer("num_attention_heads")
    if keys.integer("num_key_value_heads", default=heads) != heads:
        keys.problem(f"num_key_value_heads is {keys.data['num_key_value_heads']}: with a latent it must be {heads}")
    rank = keys.integer("q_lora_rank") if keys.given("q_lora_rank") else None
    latent, nope, turning, value = (keys.integer(name) for name in MLA_KEYS)
    mla = Mla(heads, latent, nope, turning, value, rank)
    scale = mla.qk_head_dim**-0.5 * mscale(keys) ** 2
    return {"mla": mla, "qkv": mla.modules, "head_dim": mla.qk_head_dim, "attention_scale": scale}


def mscale(keys: Keys) -> float:
    """0.1 mscale_all_dim ln(factor) + 1 where both are given, as yarn_apply_mscale has it; else 1."""
    name = "rope_parameters" if keys.given("rope_parameters") else "rope_scaling"
    rope = keys.data.get(name)
    rope = rope if isinstance(rope, dict) else {}
    factor, all_dim = rope.get("factor") or 1, rope.get("mscale_all_dim") or 0
    numbers = all(isinstance(x, int | float) for x in (factor, all_dim))  # rope_scaling.py notes what is no number
    is_scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    return 0.1 * all_dim * math.log(factor) + 1 if numbers and is_scaled and factor > 1 else 1.0


def read_rope(keys: Keys) -> dict[str, Any]:
    """The fields of Rope that keys outside of the rope's own say."""
    return {"head_dim": keys.integer("qk_rope_head_dim"), "interleaved": keys.flag("rope_interleave", True)}


def read_dense(keys: Keys) -> dict[str, Any]:
    """The attention, and the modules of it that attention_bias gives a bias."""
    if keys.integer("first_k_dense_replace", least=0) < keys.integer("num_hidden_layers"):
        keys.problem(f"first_k_dense_replace is {keys.data['first_k_dense_replace']}: experts are not supported")
    fields = read_mla(keys)
    biased = ("q_a_proj", "kv_a_proj_with_mqa", "o_proj") if keys.flag("attention_bias") else ()
    return fields | {"biased": tuple(name for name in biased if name in (*fields["qkv"], "o_proj"))}


WIDTHS = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
OBEYS = ("attention_bias", "auto_map")  # the code that the repositories bring along is that of these classes
V2 = Family(
    "DeepseekV2ForCausalLM",
    "deepseek_v2",
    {
        **WIDTHS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "first_k_dense_replace": 0,
    },
    {"unrounded": ("rope_table", "rope_product")},
    biases={"mlp_bias": LLAMA_BIASES["mlp_bias"]},
    read=read_dense,
    obeys=OBEYS,
    read_rope=read_rope,
)
V3 = Family(
    "DeepseekV3ForCausalLM",
    "deepseek_v3",
    {
        **WIDTHS,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "first_k_dense_replace": 3,
    },
    read=read_dense,
    obeys=(*OBEYS, "rope_interleave"),
    read_rope=read_rope,
)
FAMILIES = (V2, V3)
