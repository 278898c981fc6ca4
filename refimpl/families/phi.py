"""Phi-3, 3.5, 4 and 4-mini (transformers, modeling_phi3.py): q, k and v are one module, gate and up another, and LoRA
on them is one pair. Part of a head turns (4-mini), by longrope in the long-context models."""

from typing import Any

from .family import Family


def respelt(data: dict[str, Any]) -> dict[str, Any]:
    """The rope types "su" and "yarn" of early checkpoints mean longrope."""

    def renamed(rope: Any) -> Any:
        if not isinstance(rope, dict):
            return rope
        types = {key: "longrope" for key in ("rope_type", "type") if rope.get(key) in ("su", "yarn")}
        return rope | types

    return data | {key: renamed(data[key]) for key in ("rope_scaling", "rope_parameters") if key in data}


PHI3 = Family(
    "Phi3ForCausalLM",
    "phi3",
    {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
    {"qkv": ("qkv_proj",), "gate_up": ("gate_up_proj",)},
    windowed=True,
    partial=True,
    respelt=respelt,
)
FAMILIES = (PHI3,)
