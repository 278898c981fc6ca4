"""What the families with multi-head latent attention (mla.py) have in common: its keys in config.json."""

import math
from typing import Any

from ..config import Mla
from .family import Keys

BIASED = ("q_a_proj", "kv_a_proj_with_mqa", "o_proj")


def read_latent(keys: Keys) -> dict[str, Any]:
    """The widths of the attention, what attention_bias gives a bias, the scale of the scores, and how many layers
    behind the last predict further tokens (multi-token prediction): they are stored, and not of this model."""
    heads = keys.integer("num_attention_heads")
    if keys.integer("num_key_value_heads", default=heads) != heads:
        keys.problem(f"num_key_value_heads is {keys.data['num_key_value_heads']}: with a latent it must be {heads}")
    rank = keys.integer("q_lora_rank") if keys.given("q_lora_rank") else None
    names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    latent, nope, turning, value = (keys.integer(name) for name in names)
    mla = Mla(heads, latent, nope, turning, value, rank)
    modules = (*mla.modules, "o_proj")
    drafts = next((key for key in ("num_nextn_predict_layers", "num_mtp_layers") if keys.given(key)), None)
    return {
        "mla": mla,
        "qkv": mla.modules,
        "head_dim": mla.qk_head_dim,
        "attention_scale": mla.qk_head_dim**-0.5 * mscale(keys) ** 2,
        "biased": tuple(name for name in BIASED if name in modules) if keys.flag("attention_bias") else (),
        "unread_layers": keys.integer(drafts, least=0) if drafts else 0,
    }


def mscale(keys: Keys) -> float:
    """0.1 mscale_all_dim ln(factor) + 1 where both are given, as yarn_apply_mscale has it; else 1."""
    rope = keys.data.get("rope_parameters" if keys.given("rope_parameters") else "rope_scaling")
    rope = rope if isinstance(rope, dict) else {}
    factor, all_dim = rope.get("factor") or 1, rope.get("mscale_all_dim") or 0
    numbers = all(isinstance(number, int | float) for number in (factor, all_dim))  # rope_scaling.py notes others
    is_scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    return 0.1 * all_dim * math.log(factor) + 1 if numbers and is_scaled and factor > 1 else 1.0


def read_rope(keys: Keys) -> dict[str, Any]:
    """The fields of Rope that keys beside it say."""
    return {"head_dim": keys.integer("qk_rope_head_dim"), "interleaved": keys.flag("rope_interleave", True)}
