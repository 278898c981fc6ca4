"""GLM-4-0414 (transformers, modeling_glm4.py): norms before and after each block, gate and up in one module, and the
first half of each head turned in interleaved pairs."""

from ..config import Norms
from .family import QKV, Family

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
FAMILIES = (GLM4,)
