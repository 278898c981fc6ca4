"""What a GGUF file of the llama architecture calls a module, and in which order its rows lie there.

    model.layers.3.self_attn.q_proj    blk.3.attn_q        (gguf/tensor_mapping.py)

llama.cpp turns neighbouring channels of a head where transformers turns channel i and channel i + head_dim / 2 (rope).
So its converter interleaves the rows of q and k, those of lora_B and of biases with them: in the file, each head's rows
are 0, half, 1, half + 1, ... (conversion/llama.py, permute). `half_split` puts them back, `interleaved` does it again.
Of Qwen and Gemma it turns what transformers does, and their rows stay (conversion/qwen.py, gemma.py).
"""

import re

import numpy as np

from ..arrays import Array
from ..config import EMBED, LM_HEAD, ModelConfig, Module
from ..families import FAMILIES
from .families import families_of

INTERLEAVED = "llama"  # the architecture whose rows of q and k are
OUTER = {EMBED: "token_embd", LM_HEAD: "output"}
NORM = "output_norm"
INNER = {
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
LAYER = re.compile(r"blk\.(\d{1,5})\.(\w+)")


def architecture_of(config: ModelConfig) -> str:
    """Return what llama.cpp calls the architecture of a base whose adapters have these names; "" for others. The text
    part of a model of images is one of its own there. One that does not say of which family it is, is a Llama where it
    is like one."""
    if config.moe:
        return ""
    families = families_of(config.model_type)
    return families[0].gguf if families else "" if config.beyond_llama else INTERLEAVED


def known_architectures() -> list[str]:
    """Return all of them."""
    return sorted({family.gguf for family in FAMILIES.values() if family.gguf})


def gguf_name(module: Module) -> str:
    """The module's name in the file, without .weight. A layer's norm counts as one of its modules here."""
    return OUTER[module] if module in OUTER else f"blk.{module[0]}.{INNER[module[1]]}"


def module_named(name: str) -> Module | None:
    """The module of a name in the file, without .weight; None if a Llama has none of that name."""
    outer = next((module for module, spelt in OUTER.items() if spelt == name), None)
    match = LAYER.fullmatch(name)
    inner = next((module for module, spelt in INNER.items() if match and spelt == match[2]), None)
    return (int(match[1]), inner) if match and inner else outer


def rotary_heads(module: str, config: ModelConfig) -> int | None:
    """How many heads the module's rows are, if they are turned by rope; None if they are not."""
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module)


def half_split(rows: Array, heads: int | None) -> Array:
    """The rows of a file's q or k as transformers has them; those of other modules (None) as they are."""
    if heads is None:
        return rows
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def interleaved(rows: Array, heads: int | None) -> Array:
    """The rows of transformers' q or k as a file has them; those of other modules (None) as they are."""
    if heads is None:
        return rows
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
