"""DeepSeek V2 and V3, of which R1 and Kimi K2 are models, and GLM-4.7-Flash (transformers, modeling_deepseek_v2.py,
modeling_deepseek_v3.py and modeling_glm4_moe_lite.py): multi-head latent attention, and experts in groups beside an MLP
for every token."""

from typing import Any

from ..config import Moe
from .experts import OBEYS, STACKED, after_the_dense, chosen_experts, count_experts, expert_groups, shared_experts
from .family import LLAMA_BIASES, Family, Keys
from .latent import read_latent, read_rope

WIDTHS = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
KEYS = (*OBEYS, "attention_bias")
OWN_CODE = "auto_map"  # the repositories bring their code along, which is what transformers has for these classes


def routed(keys: Keys) -> dict[str, Any]:
    """The fields of Moe that both versions have."""
    if keys.integer("moe_layer_freq", default=1) != 1:
        keys.problem(f"moe_layer_freq is {keys.data['moe_layer_freq']}: the class has experts in every layer")
    experts = count_experts(keys, 1)
    return {
        "experts": experts,
        "top_k": chosen_experts(keys, experts),
        "width": keys.integer("moe_intermediate_size"),
        "scale": keys.positive("routed_scaling_factor"),
        "shared": shared_experts(keys),
        "stacked": STACKED,
    }


def v2_experts(keys: Keys) -> Moe:
    """Softmax of all; the best, or the best in the groups that hold the best ones."""
    fields = routed(keys)
    if keys.flag("mlp_bias"):
        keys.problem("mlp_bias is true: with experts it is not supported")
    if keys.data.get("topk_method") == "group_limited_greedy":
        return Moe(**fields, groups=expert_groups(keys, fields["experts"], best=1))
    return Moe(**fields)


def v3_experts(keys: Keys) -> Moe:
    """A sigmoid of each, and a correction for the choice alone."""
    fields = routed(keys)
    return Moe(
        **fields,
        scores="sigmoid",
        renormalise=keys.flag("norm_topk_prob"),
        groups=expert_groups(keys, fields["experts"], best=2),
        correction="mlp.gate.e_score_correction_bias",
    )


def mlp_type(keys: Keys, layer: int) -> bool:
    """Whether a layer of a GLM has experts, by its list; without one, all but the first."""
    kinds, count = keys.data.get("mlp_layer_types"), keys.integer("num_hidden_layers")
    if kinds is None:
        return layer > 0
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in ("dense", "sparse") for kind in kinds):
        if layer == 0:
            keys.problem(f"mlp_layer_types is {kinds!r}: it must be a list of {count} of dense, sparse")
        return False
    return kinds[layer] == "sparse"


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
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
        "routed_scaling_factor": 1.0,
        "topk_method": "greedy",
    },
    {"unrounded": ("rope_table", "rope_product", "router", "router_weights")},
    biases={"mlp_bias": LLAMA_BIASES["mlp_bias"]},
    read=read_latent,
    obeys=(*KEYS, OWN_CODE),
    read_rope=read_rope,
    moe=v2_experts,
    sparse=after_the_dense,
)
V3_DEFAULTS = {**WIDTHS, "bos_token_id": 0, "eos_token_id": 1, "n_shared_experts": 1, "norm_topk_prob": True}
V3 = Family(
    "DeepseekV3ForCausalLM",
    "deepseek_v3",
    {
        **V3_DEFAULTS,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "first_k_dense_replace": 3,
        "n_routed_experts": 256,
        "moe_intermediate_size": 2048,
        "num_experts_per_tok": 8,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
    },
    {"unrounded": ("router", "router_weights")},
    read=read_latent,
    obeys=(*KEYS, OWN_CODE, "rope_interleave"),
    read_rope=read_rope,
    moe=v3_experts,
    sparse=after_the_dense,
    other_types=("kimi_k2",),
)
GLM_FLASH = Family(
    "Glm4MoeLiteForCausalLM",
    "glm4_moe_lite",
    {
        **V3_DEFAULTS,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "head_dim": 64,  # of what turns: hidden_size need not be a multiple of the heads
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 202752,
        "n_routed_experts": 64,
        "moe_intermediate_size": 1536,
        "num_experts_per_tok": 4,
        "routed_scaling_factor": 1.8,
        "n_group": 1,
        "topk_group": 1,
    },
    {"unrounded": ("router", "router_weights")},
    read=read_latent,
    obeys=(*KEYS, "rope_interleave"),
    read_rope=read_rope,
    partial=True,
    moe=v3_experts,
    sparse=mlp_type,
)
FAMILIES = (V2, V3, GLM_FLASH)
