"""Granite 3 and the dense Granite 4 (transformers, modeling_granite.py and modeling_granitemoehybrid.py): a Llama with
four multipliers. Granite 4 keeps its MLP in the place of shared experts, and turns only where position_embedding_type
says rope."""

from typing import Any

from ..config import ATTENTION_MODULES
from .family import EOS, LLAMA_BIASES, Family, Keys

MULTIPLIERS = {"attention_multiplier": 1.0, "embedding_multiplier": 1.0, "residual_multiplier": 1.0}
DEFAULTS = {**EOS, **MULTIPLIERS, "logits_scaling": 1.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
NUMBERS = {
    "attention_multiplier": "attention_scale",  # in the place of 1/sqrt(head_dim), also where it is absent: 1
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logits_scaling",
}


def read_dense_hybrid(keys: Keys) -> dict[str, Any]:
    """Refuse experts and Mamba layers; the width of the MLP."""
    if keys.integer("num_local_experts", least=0):
        keys.problem(f"num_local_experts is {keys.data['num_local_experts']}: a mixture of experts is not supported")
    kinds = keys.data.get("layer_types") or keys.data.get("layers_block_type") or ["mamba"]
    others = [kind for kind in kinds if kind not in ("attention", "full_attention")] if isinstance(kinds, list) else []
    if others or not isinstance(kinds, list):
        keys.problem(f"layer_types holds {others[0] if others else kinds!r}: only attention layers are supported")
    return {"intermediate_size": keys.integer("shared_intermediate_size")}


GRANITE = Family("GraniteForCausalLM", "granite", DEFAULTS, numbers=NUMBERS, biases=LLAMA_BIASES)
GRANITE4 = Family(
    "GraniteMoeHybridForCausalLM",
    "granitemoehybrid",
    {**DEFAULTS, "num_local_experts": 8, "shared_intermediate_size": 1024, "intermediate_size": 11008},
    {"gate_up": ("input_linear",), "down": "output_linear"},
    numbers=NUMBERS,
    biases={"attention_bias": ATTENTION_MODULES},
    read=read_dense_hybrid,
    obeys=("num_local_experts", "layer_types", "layers_block_type"),
    turns=lambda keys, layer: keys.data.get("position_embedding_type") == "rope",
)
FAMILIES = (GRANITE, GRANITE4)
