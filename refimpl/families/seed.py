"""Seed-OSS (transformers, modeling_seed_oss.py): a Llama whose flags say the biases of q, k, v and of o apart."""

from ..config import MLP_MODULES
from .family import QKV, Family

SEED = Family(
    "SeedOssForCausalLM",
    "seed_oss",
    {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 524288,
        "attention_bias": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    biases={"attention_bias": QKV, "attention_out_bias": ("o_proj",), "mlp_bias": MLP_MODULES},
)
FAMILIES = (SEED,)
