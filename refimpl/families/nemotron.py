"""Nemotron 3 and 4, Minitron (transformers, modeling_nemotron.py): LayerNorm whose weight is what is added to 1, half
of each head turns, and an MLP of two modules with max(x, 0)^2 between them."""

from ..config import ATTENTION_MODULES, Norms
from .family import Family

NEMOTRON = Family(
    "NemotronForCausalLM",
    "nemotron",
    {
        "norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.5,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    {
        "norms": Norms(centred=True, bias=True, plus_one=True),
        "gate_up": ("up_proj",),
        "unrounded": ("norm_inner",),
    },
    biases={"attention_bias": ATTENTION_MODULES, "mlp_bias": ("up_proj", "down_proj")},
    eps="norm_eps",
    activations={"relu2": "relu2"},
    partial=True,
)
FAMILIES = (NEMOTRON,)
