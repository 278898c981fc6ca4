"""A small base of each family: keys of config.json with which every rule of the family changes the numbers.

Sizes are drawn (`small_config`); what stands here is what makes a model one of its family. A window is shorter than
most prompts, a cap cuts what is computed, no multiplier is 1, a rope that is scaled begins to be within the prompt.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import FAMILIES

Sizes = Mapping[str, Any]  # the keys that are drawn
Rule = Callable[[Sizes], dict[str, Any]]

# Rope, scaled at lengths that a test has: ORIGINAL is shorter than its longest prompts.
ORIGINAL = 16
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
MULTIPLIERS = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 2.5,
    "residual_multiplier": 0.4,
    "logits_scaling": 1.5,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
GROUPS = {"n_routed_experts": 6, "n_group": 3, "topk_group": 2, "n_shared_experts": 1, "routed_scaling_factor": 1.5}


def slides(sizes: Sizes) -> list[str]:
    """A window in every other layer, the first one included."""
    count = sizes["num_hidden_layers"]
    return [("sliding_attention", "full_attention")[i % 2] for i in range(count)]


def latent(sizes: Sizes) -> dict[str, Any]:
    """Multi-head latent attention, with values that are narrower than keys."""
    return {
        "num_key_value_heads": sizes["num_attention_heads"],
        "head_dim": ...,
        "kv_lora_rank": 20,
        "q_lora_rank": 28,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 10,
        "rope_scaling": {"type": "yarn", "mscale": 0.7, "mscale_all_dim": 1.2} | YARN,
    }


def longrope(sizes: Sizes) -> dict[str, Any]:
    """Phi's: three quarters of a head turn; other factors from the tenth token on."""
    pairs = int(sizes["head_dim"] * 0.75) // 2
    return {
        "rope_scaling": {
            "type": "longrope",
            "short_factor": np.linspace(1.0, 1.5, pairs).tolist(),
            "long_factor": np.linspace(1.5, 4.0, pairs).tolist(),
        },
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 10,
    }


RULES: dict[str, Rule] = {
    "llama": lambda sizes: {"rope_scaling": LLAMA3},
    "mistral": lambda sizes: {"sliding_window": 7},
    "qwen2": lambda sizes: {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": lambda sizes: {"attention_bias": True},
    "phi3": longrope,
    "gemma": lambda sizes: {"hidden_act": "gelu"},
    "gemma2": lambda sizes: {
        "hidden_act": "gelu_pytorch_tanh",
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 20.0,
        "query_pre_attn_scalar": 9,
        "sliding_window": 5,
    },
    "gemma3_text": lambda sizes: {
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": 5,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 9,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e3,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "gemma4_text": lambda sizes: {
        "num_hidden_layers": 4,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 5,
        "rope_theta": ...,
        "global_head_dim": 2 * sizes["head_dim"],
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": sizes["vocab_size"],
        "final_logit_softcapping": 20.0,
    },
    "granite": lambda sizes: MULTIPLIERS | {"attention_bias": True},
    "granitemoehybrid": lambda sizes: (
        MULTIPLIERS
        | {
            "num_local_experts": 0,
            "shared_intermediate_size": sizes["intermediate_size"],
            "layer_types": ["attention"] * sizes["num_hidden_layers"],
            "position_embedding_type": "rope",
            "mamba_n_heads": 2,  # of layers that it has none of, and that transformers checks all the same
        }
    ),
    "smollm3": lambda sizes: {"no_rope_layers": [i % 2 for i in range(sizes["num_hidden_layers"])]},
    "olmo2": lambda sizes: {"attention_bias": True},
    "olmo3": lambda sizes: {"rope_theta": 5e5, "sliding_window": 5, "layer_types": slides(sizes), "rope_scaling": YARN},
    "ministral3": lambda sizes: {
        "rope_theta": ...,
        "rope_parameters": YARN | {"rope_theta": 1e5, "llama_4_scaling_beta": 0.3},
    },
    "glm4": lambda sizes: {"partial_rotary_factor": 0.5, "attention_bias": True},
    "seed_oss": lambda sizes: {"attention_bias": True, "attention_out_bias": False},
    "ernie4_5": lambda sizes: {"use_bias": True},
    "hunyuan_v1_dense": lambda sizes: {"rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0}},
    "exaone4": lambda sizes: {"sliding_window": 5, "layer_types": slides(sizes)},
    "cohere2": lambda sizes: {
        "rms_norm_eps": ...,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.25,
        "sliding_window": 5,
        "layer_types": slides(sizes),
    },
    "starcoder2": lambda sizes: {
        "rms_norm_eps": ...,
        "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": True,
        "sliding_window": 7,
    },
    "nemotron": lambda sizes: {
        "rms_norm_eps": ...,
        "norm_eps": 1e-5,
        "hidden_act": "relu2",
        "partial_rotary_factor": 0.5,
    },
    "mixtral": lambda sizes: {"num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen2_moe": lambda sizes: (
        EXPERTS | {"num_experts": 5, "shared_expert_intermediate_size": 40, "norm_topk_prob": False}
    ),
    "qwen3_moe": lambda sizes: EXPERTS | {"num_experts": 6, "norm_topk_prob": True, "mlp_only_layers": [0]},
    "granitemoe": lambda sizes: MULTIPLIERS | {"num_local_experts": 5, "num_experts_per_tok": 2},
    "granitemoeshared": lambda sizes: (
        MULTIPLIERS | {"num_local_experts": 5, "num_experts_per_tok": 2, "shared_intermediate_size": 24}
    ),
    "glm4_moe": lambda sizes: EXPERTS | GROUPS | {"first_k_dense_replace": 1, "use_qk_norm": True},
    "deepseek_v2": lambda sizes: (
        latent(sizes)
        | EXPERTS
        | GROUPS
        | {"first_k_dense_replace": 1, "topk_method": "group_limited_greedy", "scoring_func": "softmax"}
    ),
    "deepseek_v3": lambda sizes: (
        latent(sizes)
        | EXPERTS
        | GROUPS
        | {"first_k_dense_replace": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True}
    ),
    "glm4_moe_lite": lambda sizes: (
        latent(sizes) | EXPERTS | GROUPS | {"first_k_dense_replace": 1, "norm_topk_prob": True}
    ),
    "gpt_oss": lambda sizes: {
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": 5,
        "layer_types": slides(sizes),
        "swiglu_limit": 1.5,
        "rope_scaling": YARN | {"truncate": False},
    },
}
ARCHITECTURES = {family.model_type: family.architecture for family in FAMILIES.values()}


def small_config(model_type: str, rng: np.random.Generator) -> dict[str, Any]:
    """Draw the config.json of a small base of a family."""
    heads, kv_heads = [(4, 2), (6, 2), (6, 3), (8, 2)][rng.integers(4)]
    head_dim = int(rng.choice([8, 16]))
    sizes = {
        "vocab_size": int(rng.choice([256, 320])),
        "hidden_size": heads * head_dim,
        "intermediate_size": int(rng.choice([96, 112, 160])),
        "num_hidden_layers": int(rng.integers(2, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    keys = sizes | RULES[model_type](sizes)
    keys |= {"architectures": [ARCHITECTURES[model_type]], "model_type": model_type}
    return {key: value for key, value in keys.items() if value is not ...}
