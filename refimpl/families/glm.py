"""GLM-4-0414 (transformers, modeling_glm4.py): norms before and after each block, gate and up in one module, and the
first half of each head turned in interleaved pairs.

GLM-4.5 to 4.7 (modeling_glm4_moe.py) are of another kind: norms as a Llama's, over each head of q and k in some, the
first half of each head turned in halves, and experts chosen as DeepSeek-V3 chooses them, in float32."""

from typing import Any

from ..config import Moe, Norms
from .experts import OBEYS, STACKED, after_the_dense, chosen_experts, count_experts, expert_groups, shared_experts
from .family import QKV, Family, Keys

GLM4 = Family(
    "Glm4ForCausalLM",
    "glm4",
    {
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 0.00000015625,
        "max_position_embeddings": 131072,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "eos_token_id": [151329, 151336, 151338],
    },
    {
        "norms": Norms(attention_out="post_self_attn_layernorm", mlp_out="post_mlp_layernorm"),
        "gate_up": ("gate_up_proj",),
    },
    biases={"attention_bias": QKV},
    rope={"interleaved": True},
    partial=True,
)


def moe(keys: Keys) -> Moe:
    """The experts, chosen by a sigmoid with a correction, in groups."""
    experts = count_experts(keys, 128)
    return Moe(
        experts,
        chosen_experts(keys, experts),
        keys.integer("moe_intermediate_size"),
        "sigmoid",
        renormalise=keys.flag("norm_topk_prob"),
        scale=keys.positive("routed_scaling_factor"),
        groups=expert_groups(keys, experts, best=2),
        correction="mlp.gate.e_score_correction_bias",
        shared=shared_experts(keys),
        stacked=STACKED,
    )


def read(keys: Keys) -> dict[str, Any]:
    """Whether q and k are normalised; layers at the end that predict further tokens, and are not read."""
    norms = Norms(q="self_attn.q_norm", k="self_attn.k_norm") if keys.flag("use_qk_norm") else Norms()
    return {"norms": norms, "unread_layers": keys.integer("num_nextn_predict_layers", default=0, least=0)}


GLM4_MOE = Family(
    "Glm4MoeForCausalLM",
    "glm4_moe",
    {
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "partial_rotary_factor": 0.5,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
    {"unrounded": ("router", "router_weights")},
    biases={"attention_bias": QKV},
    read=read,
    obeys=(*OBEYS, "use_qk_norm"),
    partial=True,
    moe=moe,
    sparse=after_the_dense,
)
FAMILIES = (GLM4, GLM4_MOE)
