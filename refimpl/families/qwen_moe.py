"""Qwen 1.5, 2 and 3 with experts (transformers, modeling_qwen2_moe.py and modeling_qwen3_moe.py).

Qwen2-MoE is Qwen2 whose layers have an MLP for every token beside the experts, multiplied by the sigmoid of one number;
Qwen3-MoE is Qwen3 with experts alone. Some layers of both may have neither."""

from typing import Any

from ..config import ATTENTION_MODULES, Mlp, Moe, Norms
from .experts import OBEYS, STACKED, chosen_experts, count_experts, every_nth_layer
from .family import QKV, Family, Keys

DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
}
SPARSE = (*OBEYS, "decoder_sparse_step", "use_sliding_window", "max_window_layers")


def routed(keys: Keys, default: int) -> dict[str, Any]:
    """The fields of Moe that both have."""
    experts = count_experts(keys, default)
    return {
        "experts": experts,
        "top_k": chosen_experts(keys, experts),
        "width": keys.integer("moe_intermediate_size"),
        "renormalise": keys.flag("norm_topk_prob"),
        "stacked": STACKED,
    }


def qwen2_moe(keys: Keys) -> Moe:
    """Experts, and one more for every token."""
    shared = Mlp(
        ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
        "mlp.shared_expert.down_proj",
        keys.integer("shared_expert_intermediate_size"),
        "mlp.shared_expert.",
    )
    return Moe(**routed(keys, 60), shared=shared, shared_gate="mlp.shared_expert_gate")


def slides(keys: Keys, layer: int) -> bool:
    """Qwen3-MoE: the window is every layer's."""
    return keys.flag("use_sliding_window") and keys.given("sliding_window")


def slides_somewhere(keys: Keys, layer: int) -> bool:
    """Qwen2-MoE: without layer_types, versions of transformers put the window in other layers."""
    if keys.flag("use_sliding_window") and layer == 0:
        keys.problem("use_sliding_window is true without layer_types: versions of transformers differ on which layers")
    return False


QWEN2_MOE = Family(
    "Qwen2MoeForCausalLM",
    "qwen2_moe",
    {
        **DEFAULTS,
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "qkv_bias": True,
    },
    biases={"qkv_bias": QKV},
    obeys=(*SPARSE, "shared_expert_intermediate_size"),
    slides=slides_somewhere,
    sparse=every_nth_layer,
    moe=qwen2_moe,
)
QWEN3_MOE = Family(
    "Qwen3MoeForCausalLM",
    "qwen3_moe",
    {**DEFAULTS, "num_key_value_heads": 4, "moe_intermediate_size": 768, "num_experts_per_tok": 8},
    {"norms": Norms(q="self_attn.q_norm", k="self_attn.k_norm")},
    biases={"attention_bias": ATTENTION_MODULES},
    obeys=SPARSE,
    slides=slides,
    sparse=every_nth_layer,
    moe=lambda keys: Moe(**routed(keys, 128)),
)
FAMILIES = (QWEN2_MOE, QWEN3_MOE)
