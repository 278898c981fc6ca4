"""StarCoder 2 (transformers, modeling_starcoder2.py): LayerNorm, biases everywhere behind one flag, and an MLP without
a gate, whose modules have GPT-2's names."""

from ..config import ATTENTION_MODULES, Norms
from .family import Family
from .gemma import TANH

STARCODER2 = Family(
    "Starcoder2ForCausalLM",
    "starcoder2",
    {
        "num_key_value_heads": 2,
        "norm_epsilon": 1e-5,
        "max_position_embeddings": 4096,
        "use_bias": True,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    {
        "norms": Norms(centred=True, bias=True),
        "gate_up": ("c_fc",),
        "down": "c_proj",
        "unrounded": ("norm_inner",),
    },
    biases={"use_bias": (*ATTENTION_MODULES, "c_fc", "c_proj")},
    eps="norm_epsilon",
    activations=TANH,
    windowed=True,
)
FAMILIES = (STARCODER2,)
