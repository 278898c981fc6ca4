"""gpt-oss (transformers, modeling_gpt_oss.py): experts in every layer, whose gates are clamped; a window in every
second layer, the first one included; a sink for each query head; YaRN; biases in all linear layers but the ends."""

from typing import Any

from ..config import ATTENTION_MODULES, ClampedGate, Moe, Stacked
from .experts import chosen_experts, count_experts
from .family import Family, Keys

# Without any rope of its own, the class has this one; its theta may stand beside it.
ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def respelt(data: dict[str, Any]) -> dict[str, Any]:
    """Add the class's own rope where there is none."""
    given = data.get("rope_parameters") is not None or data.get("rope_scaling") is not None
    return data if given else data | {"rope_parameters": ROPE}


def moe(keys: Keys) -> Moe:
    """The experts: [experts, d_in, d_out], gate and up in turns."""
    experts = count_experts(keys, 128)
    return Moe(
        experts,
        chosen_experts(keys, experts),
        keys.integer("intermediate_size"),
        scores="softmax_of_chosen",
        bias=True,
        router="mlp.router",
        in_stacks=True,
        stacked=(
            Stacked("mlp.experts.gate_up_proj", ("gate_proj", "up_proj"), interleaved=True, transposed=True),
            Stacked("mlp.experts.down_proj", ("down_proj",), transposed=True),
        ),
    )


def read(keys: Keys) -> dict[str, Any]:
    """The numbers of the clamped gate."""
    gate = ClampedGate()
    alpha, limit = keys.positive("swiglu_alpha", gate.alpha), keys.positive("swiglu_limit", gate.limit)
    return {"activation": ClampedGate(alpha, limit)}


GPT_OSS = Family(
    "GptOssForCausalLM",
    "gpt_oss",
    {
        "attention_bias": True,
        "head_dim": 64,
        "num_key_value_heads": 8,
        "sliding_window": 128,
        "num_experts_per_tok": 4,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    {"sinks": True, "unrounded": ("norm_inner",)},
    biases={"attention_bias": ATTENTION_MODULES},
    read=read,
    obeys=("num_local_experts", "num_experts", "num_experts_per_tok", "swiglu_alpha", "swiglu_limit"),
    slides=lambda keys, layer: layer % 2 == 0,
    moe=moe,
    respelt=respelt,
    default_theta=150000.0,
)
FAMILIES = (GPT_OSS,)
