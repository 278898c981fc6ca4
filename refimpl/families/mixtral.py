"""Mixtral (transformers, modeling_mixtral.py): a Mistral with experts in every layer, two of which each token goes
through. Their weights stay float32 whatever the model's type."""

from ..config import Moe, Stacked
from .experts import OBEYS, chosen_experts, count_experts
from .family import EOS, Family, Keys

EXPERT = "block_sparse_moe.experts"


def moe(keys: Keys) -> Moe:
    """The experts: w1 is the gate, w3 up, w2 down."""
    experts = count_experts(keys, 8)
    return Moe(
        experts,
        chosen_experts(keys, experts),
        keys.integer("intermediate_size"),
        renormalise=True,
        router="block_sparse_moe.gate",
        expert=EXPERT,
        gate_up=("w1", "w3"),
        down="w2",
        stacked=(Stacked("mlp.experts.gate_up_proj", ("w1", "w3")), Stacked("mlp.experts.down_proj", ("w2",))),
        spellings=(("mlp.gate.weight", "block_sparse_moe.gate.weight"),),
    )


MIXTRAL = Family(
    "MixtralForCausalLM",
    "mixtral",
    {
        **EOS,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "num_experts_per_tok": 2,
    },
    {"unrounded": ("router_weights",)},
    obeys=OBEYS,
    windowed=True,
    default_theta=1e6,
    moe=moe,
)
FAMILIES = (MIXTRAL,)
