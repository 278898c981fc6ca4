"""ERNIE 4.5, dense (transformers, modeling_ernie4_5.py): a Llama that turns interleaved pairs, and rounds only after
the turning."""

from ..config import LAYER_MODULES
from .family import EOS, Family

ERNIE = Family(
    "Ernie4_5ForCausalLM",
    "ernie4_5",
    {
        **EOS,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    {"unrounded": ("rope_table", "rope_product")},
    biases={"use_bias": LAYER_MODULES},
    default_theta=500000.0,
    rope={"interleaved": True},
)
FAMILIES = (ERNIE,)
