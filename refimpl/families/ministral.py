"""Ministral 3 (transformers, modeling_ministral3.py): a Mistral whose queries grow with their position, by
1 + beta ln(1 + floor(position / original_max_position_embeddings))."""

from typing import Any

from .family import EOS, Family

ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def respelt(data: dict[str, Any]) -> dict[str, Any]:
    """Without any rope of its own, the class has this one."""
    given = data.get("rope_parameters") is not None or data.get("rope_scaling") is not None
    return data if given else data | {"rope_parameters": ROPE}


MINISTRAL3 = Family(
    "Ministral3ForCausalLM",
    "ministral3",
    {**EOS, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "max_position_embeddings": 262144},
    windowed=True,
    rope_numbers={"llama_4_scaling_beta": "query_growth"},
    respelt=respelt,
    wrappers=(("Mistral3ForConditionalGeneration", "mistral3"),),
)
FAMILIES = (MINISTRAL3,)
