"""safetensors -> arrays; names of the checkpoint -> fields of the model."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import DTYPES, Array, Float, device_namespace, dtype_of, to_device, to_host
from .config import EMBED, LAYER_MODULES, LAYER_NORMS, LM_HEAD, ModelConfig, Module, load_config, module_name
from .errors import WeightsError
from .loading.checkpoint import Tensor, open_checkpoint
from .loading.conversion import all_finite, available_memory, check_memory, converted
from .loading.findings import Findings
from .tokenizer import load_tokenizer


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x W^T + b."""

    weight: Float[Array, "d_out d_in"]
    bias: Float[Array, " d_out"] | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """One transformer layer, in the order in which the forward pass meets its weights."""

    input_layernorm: Float[Array, " d_model"]
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    post_attention_layernorm: Float[Array, " d_model"]
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A loaded base model: read-only arrays, and nothing that changes while it runs."""

    config: ModelConfig
    embed_tokens: Float[Array, "vocab d_model"]
    layers: tuple[Layer, ...]
    norm: Float[Array, " d_model"]
    lm_head: Linear  # its weight is embed_tokens itself where they are tied
    tokenizer: Any = None
    dtype: str = "float32"
    device: str = "cpu"

    def linear(self, module: Module) -> Linear:
        """The base weights at a site."""
        layer, name = module
        if module == EMBED:
            return Linear(self.embed_tokens)
        return self.lm_head if module == LM_HEAD else getattr(self.layers[layer], name)

    def __repr__(self) -> str:
        c = self.config
        shape = f"{c.num_hidden_layers} layers, hidden {c.hidden_size}, vocab {c.vocab_size}"
        return f"Model({shape}, {self.dtype}, {self.device})"

    def arrays(self) -> list[Array]:
        """Every array, once, in a fixed order."""
        tied = self.lm_head.weight is self.embed_tokens
        found = [self.norm, self.embed_tokens] if tied else [self.norm, self.embed_tokens, self.lm_head.weight]
        for i, layer in enumerate(self.layers):
            found += [layer.input_layernorm, layer.post_attention_layernorm]
            for module in LAYER_MODULES:
                linear = self.linear((i, module))
                found += [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
        return found

    @property
    def nbytes(self) -> int:
        """The size of all weights, as they are held."""
        return sum(x.nbytes for x in self.arrays())

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all weights, for prefix keys: two bases never share a KV block. Computed when first asked for."""
        h = hashlib.sha256(repr(self.config).encode())
        for x in self.arrays():
            h.update(f"{x.dtype.name} {x.shape}".encode())
            h.update(np.ascontiguousarray(to_host(x)).view(np.uint8).data)
        return h.digest()


def load_model(path: str | Path, dtype: str = "float32", device: str = "cpu") -> Model:
    """A base model from a Hugging Face folder, or the embedded one ("tiny").

    dtype is what the weights are held in: float32, float64, float16 or bfloat16. Where the checkpoint has that type,
    the arrays are the read-only memory map of the file, and take no memory of their own; where not, they are copies,
    rounded to nearest even. On device "cuda" halves are held as float32, with the values that the half has.

    ConfigError, WeightsError or DeviceError, one line that names the file; nothing is loaded then.
    """
    dtype_of(dtype)
    device_namespace(device)
    folder = base_folder(path)
    config = load_config(folder)
    found = Findings()
    tensors = open_checkpoint(folder, config, found)
    found.raise_first(WeightsError, folder)
    _check_fit(tensors, dtype, device)
    tokenizer = load_tokenizer(folder)
    return _model(config, lambda name: _load(tensors[name], name, dtype, device), tokenizer, dtype, device)


def base_folder(path: str | Path) -> Path:
    """The folder that a base model's path means: "tiny" is the embedded one, unless there is a folder of that name."""
    if str(path) == "tiny" and not os.path.isdir(path):
        from . import tiny

        return Path(tiny.base_path())
    return Path(path)


def _check_fit(tensors: Mapping[str, Tensor], dtype: str, device: str) -> None:
    """Refuse before anything is allocated: what is converted is a copy, what is not is only mapped."""
    sizes = [t.array.size * DTYPES[dtype].itemsize for t in tensors.values() if t.array.dtype != DTYPES[dtype]]
    if device == "cpu":
        check_memory(sum(sizes), f"converting the weights to {dtype}", available_memory())
    else:  # one tensor after another passes through the host
        wide = max(DTYPES[dtype].itemsize, 4)
        check_memory(max(sizes, default=0), f"converting the weights to {dtype}", available_memory())
        free = device_namespace(device).cuda.runtime.memGetInfo()[0]
        check_memory(sum(t.array.size * wide for t in tensors.values()), "holding the weights on the GPU", free)


def _load(tensor: Tensor, name: str, dtype: str, device: str) -> Array:
    """One tensor, in the dtype, on the device."""
    array = converted(tensor.array, dtype)
    if array is not tensor.array and not all_finite(array):
        raise WeightsError(f"{tensor.file}: tensor {name} has values too large for {dtype}")
    if device != "cpu":
        return to_device(array, device)
    array.flags.writeable = False
    return array


def _model(config: ModelConfig, load: Callable[[str], Array], tokenizer: Any, dtype: str, device: str) -> Model:
    """The fields of the model, by the names of the checkpoint (transformers, modeling_llama.py)."""

    def linear(module: Module) -> Linear:
        name = module_name(module)
        return Linear(load(f"{name}.weight"), load(f"{name}.bias") if config.has_bias(module[1]) else None)

    def layer(i: int) -> Layer:
        norms = {name: load(f"model.layers.{i}.{name}.weight") for name in LAYER_NORMS}
        return Layer(**norms, **{name: linear((i, name)) for name in LAYER_MODULES})  # type: ignore[arg-type]

    embed_tokens = load("model.embed_tokens.weight")
    layers = tuple(layer(i) for i in range(config.num_hidden_layers))
    norm = load("model.norm.weight")
    lm_head = Linear(embed_tokens) if config.tie_word_embeddings else linear(LM_HEAD)
    return Model(config, embed_tokens, layers, norm, lm_head, tokenizer, dtype, device)
