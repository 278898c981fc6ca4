"""The tensors of a GGUF base under the names that transformers gives them, each q and k in transformers' order."""

import re
from pathlib import Path

from ..arrays import Array
from ..config import LAYER_MODULES, ModelConfig, Module, module_name
from .dequantise import BLOCKS, FLOATS, dtype_of_type, is_readable, missing_package, numbers
from .diagnostics import Diagnostics
from .gguf_config import ROPE_FACTORS
from .gguf_file import GgufTensor
from .gguf_names import NORM, gguf_name, half_split, module_named, rotary_heads
from .gguf_parts import open_gguf
from .tensor import Tensor

PART = re.compile(r"(.+)\.(weight|bias)")


def gguf_tensors(path: Path, config: ModelConfig | None, diagnostics: Diagnostics) -> list[tuple[str, Tensor]]:
    """(name in transformers, tensor) of each tensor in the file; a name that no Llama has is left as it is."""
    file = open_gguf(path, diagnostics)
    return [
        (hf_name(name), _tensor(path, name, stored, config))
        for name, stored in (file.tensors if file else {}).items()
        if name != ROPE_FACTORS  # gguf_config.py has read it
    ]


def hf_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    match = PART.fullmatch(name)
    if match and match[1] == NORM:
        return f"model.norm.{match[2]}"
    module = module_named(match[1]) if match else None
    return f"{_module_or_norm(module)}.{match[2]}" if match and module else name


def gguf_spelling(name: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight"""
    path, _, part = name.rpartition(".")
    if path == "model.norm":
        return f"{NORM}.{part}"
    layer = re.match(r"model\.layers\.(\d+)\.", path)
    return f"{gguf_name((int(layer[1]) if layer else -1, path.rpartition('.')[2]))}.{part}"


def _module_or_norm(module: Module) -> str:
    layer, name = module
    return module_name(module) if layer < 0 or name in LAYER_MODULES else f"model.layers.{layer}.{name}"


def _tensor(path: Path, name: str, stored: GgufTensor, config: ModelConfig | None) -> Tensor:
    """One tensor. Its rows are only put in order where the config says how many heads they are."""
    match = PART.fullmatch(name)
    module = module_named(match[1]) if match else None
    heads = rotary_heads(module[1], config) if module and config else None
    problem = None
    if not is_readable(stored.type):
        problem = f"has type {stored.type}; supported are {', '.join([*FLOATS, *BLOCKS])}"
    elif stored.type in BLOCKS:
        problem = missing_package() and f"has type {stored.type}, which {missing_package()}"

    def read() -> Array:
        return half_split(numbers(stored.type, stored.data), heads)

    kind = FLOATS.get(stored.type, stored.type)
    return Tensor(path, name, stored.shape, kind, stored.data.nbytes, dtype_of_type(stored.type), read, problem)
