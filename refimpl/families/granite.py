"""Granite 3 and the Granite 4 without Mamba layers (transformers, modeling_granite.py, modeling_granitemoe.py,
modeling_granitemoeshared.py, modeling_granitemoehybrid.py): a Llama with four multipliers, and experts in some.

Experts are chosen by their logits, of which the chosen ones' softmax is taken. Granite 4 has an MLP for every token
beside them, which is all that its dense models have, and turns only where position_embedding_type says rope."""

from dataclasses import replace
from typing import Any

from ..config import ATTENTION_MODULES, Mlp, Moe, Stacked
from .experts import OBEYS, chosen_experts, count_experts
from .family import EOS, LLAMA_BIASES, Family, Keys

MULTIPLIERS = {"attention_multiplier": 1.0, "embedding_multiplier": 1.0, "residual_multiplier": 1.0}
DEFAULTS = {**EOS, **MULTIPLIERS, "logits_scaling": 1.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
NUMBERS = {
    "attention_multiplier": "attention_scale",  # in the place of 1/sqrt(head_dim), also where it is absent: 1
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logits_scaling",
}


EXPERTS = {**DEFAULTS, "num_experts_per_tok": 2, "intermediate_size": 11008}
PARENT = "block_sparse_moe"


def moe(keys: Keys) -> Moe:
    """The experts, and what all tokens share where shared_intermediate_size says how wide it is."""
    experts, shared = count_experts(keys, 8), keys.integer("shared_intermediate_size", default=0, least=0)
    return Moe(
        experts,
        chosen_experts(keys, experts),
        keys.integer("intermediate_size"),
        "softmax_of_chosen",
        router=f"{PARENT}.router.layer",
        expert=f"{PARENT}.experts",
        shared=Mlp(("input_linear",), "output_linear", shared, "shared_mlp.") if shared else None,
        in_stacks=True,
        stacked=(
            Stacked(f"{PARENT}.input_linear.weight", ("gate_proj", "up_proj")),
            Stacked(f"{PARENT}.output_linear.weight", ("down_proj",)),
        ),
        spellings=(
            (f"{PARENT}.router.weight", f"{PARENT}.router.layer.weight"),
            (f"{PARENT}.experts.gate_up_proj", f"{PARENT}.input_linear.weight"),
            (f"{PARENT}.experts.down_proj", f"{PARENT}.output_linear.weight"),
        ),
    )


def read_hybrid(keys: Keys) -> dict[str, Any]:
    """Refuse Mamba layers; the width of the MLP."""
    kinds = keys.data.get("layer_types") or keys.data.get("layers_block_type") or ["mamba"]
    others = [kind for kind in kinds if kind not in ("attention", "full_attention")] if isinstance(kinds, list) else []
    if others or not isinstance(kinds, list):
        keys.problem(f"layer_types holds {others[0] if others else kinds!r}: only attention layers are supported")
    return {"intermediate_size": keys.integer("shared_intermediate_size")}


GRANITE = Family("GraniteForCausalLM", "granite", DEFAULTS, numbers=NUMBERS, biases=LLAMA_BIASES)
GRANITE_MOE = Family(
    "GraniteMoeForCausalLM",
    "granitemoe",
    EXPERTS,
    numbers=NUMBERS,
    biases={"attention_bias": ATTENTION_MODULES},
    obeys=OBEYS,
    moe=moe,
)
GRANITE_SHARED = replace(GRANITE_MOE, architecture="GraniteMoeSharedForCausalLM", model_type="granitemoeshared")
GRANITE4 = Family(
    "GraniteMoeHybridForCausalLM",
    "granitemoehybrid",
    {**EXPERTS, "shared_intermediate_size": 1024},
    {"gate_up": ("input_linear",), "down": "output_linear"},
    numbers=NUMBERS,
    biases={"attention_bias": ATTENTION_MODULES},
    read=read_hybrid,
    obeys=(*OBEYS, "layer_types", "layers_block_type", "position_embedding_type"),
    turns=lambda keys, layer: keys.data.get("position_embedding_type") == "rope",
    moe=moe,
    sparse=lambda keys, layer: count_experts(keys, 8, least=0) > 0,
)
FAMILIES = (GRANITE, GRANITE_MOE, GRANITE_SHARED, GRANITE4)
