"""A Hugging Face folder or a GGUF file -> a Model: mapped or converted, under the names of the checkpoint."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import DTYPES, Array, device_namespace, dtype_of, namespace, rounded, to_device, widen
from ..config import LAYER_INPUTS, LM_HEAD, SINKS, ModelConfig, Module, module_name
from ..errors import WeightsError
from ..weights import Layer, LayerInputs, Linear, Model, PackedLinear
from .checkpoint import open_checkpoint
from .config_file import load_config
from .conversion import all_finite, available_memory, check_memory, converted
from .diagnostics import Diagnostics
from .embedded import BASE
from .tensor import Tensor
from .tokenizer_file import load_tokenizer


def load_model(path: str | Path, dtype: str = "float32", device: str = "cpu") -> Model:
    """A base model from a Hugging Face folder, from a GGUF file (of the llama architecture), or the embedded one
    ("tiny").

    dtype is what the weights are held in: float32, float64, float16 or bfloat16. Where the checkpoint has that type,
    the arrays are the read-only memory map of the file, and take no memory of their own; where not, they are copies,
    rounded to nearest even. On device "cuda" halves are held as float32, with the values that the half has. Quantised
    weights become the numbers that they stand for (dequantise.py): what they were before is not in the file. On the CPU
    the experts of gpt-oss stay packed (mxfp4), and are made into numbers one by one when they are used.

    ConfigError, WeightsError or DeviceError, one line that names the file; nothing is loaded then.
    """
    dtype_of(dtype)
    device_namespace(device)
    folder = base_folder(path)
    config = in_dtype(load_config(folder), dtype)
    diagnostics = Diagnostics()
    tensors = open_checkpoint(folder, config, diagnostics)
    diagnostics.raise_first(WeightsError, folder)
    check_fit(tensors, dtype, device)
    tokenizer = load_tokenizer(folder)
    packed = {name for name, tensor in tensors.items() if device == "cpu" and tensor.stays_packed(dtype)}

    def load(name: str, kept: str = dtype) -> Array:
        return load_tensor(tensors[name], kept, device)

    def linear(name: str, kept: str, bias: Array | None) -> Linear:
        tensor = tensors[name]
        if name not in packed or tensor.packing is None:
            return Linear(load(name, kept), bias)
        return PackedLinear(lambda: unpacked(tensor, kept), tensor.packing(), bias)

    return _model(config, load, linear, tokenizer, dtype, device)


def unpacked(tensor: Tensor, dtype: str) -> Array:
    """The numbers of a tensor that stays packed."""
    array = converted(tensor.read(), dtype)
    array.flags.writeable = False
    return array


def in_dtype(config: ModelConfig, dtype: str) -> ModelConfig:
    """The config with the embedding's factor rounded to the type, where that is a tensor of the model."""
    if not config.tensor_multiplier:
        return config
    return dataclasses.replace(
        config, embedding_multiplier=float(np.float64(config.embedding_multiplier).astype(DTYPES[dtype]))
    )


def base_folder(path: str | Path) -> Path:
    """The folder that a base model's path means: "tiny" is the embedded one, unless there is a folder of that name."""
    return BASE if str(path) == "tiny" and not os.path.isdir(path) else Path(path)


def check_fit(tensors: Mapping[str, Tensor], dtype: str, device: str) -> None:
    """Refuse before anything is allocated: what is converted is a copy, what is not is only mapped."""
    sizes = [tensor.size * DTYPES[dtype].itemsize for tensor in tensors.values() if not tensor.is_mapped(dtype)]
    if device == "cpu":
        check_memory(sum(sizes), f"converting the weights to {dtype}", available_memory())
    else:  # one tensor after another passes through the host
        wide = max(DTYPES[dtype].itemsize, 4)
        check_memory(max(sizes, default=0), f"converting the weights to {dtype}", available_memory())
        free = device_namespace(device).cuda.runtime.memGetInfo()[0]
        check_memory(sum(tensor.size * wide for tensor in tensors.values()), "holding the weights on the GPU", free)


def load_tensor(tensor: Tensor, dtype: str, device: str) -> Array:
    """One tensor, in the dtype, on the device."""
    stored = tensor.read()
    if tensor.quantised and not all_finite(stored):
        raise WeightsError(f"{tensor.file}: tensor {tensor.name} holds NaN or inf")
    array = converted(stored, dtype)
    if array is not stored and not all_finite(array):
        raise WeightsError(f"{tensor.file}: tensor {tensor.name} has values too large for {dtype}")
    if device != "cpu":
        return to_device(array, device)
    array.flags.writeable = False
    return array


def _model(
    config: ModelConfig,
    load: Callable[..., Array],
    linear_of: Callable[[str, str, Array | None], Linear],
    tokenizer: Any,
    dtype: str,
    device: str,
) -> Model:
    """The fields of the model, by the names of the checkpoint (transformers, modeling_llama.py)."""

    wide = "float64" if dtype == "float64" else "float32"  # whatever the model's type, as transformers does

    def linear(module: Module) -> Linear:
        name = module_name(module)
        kept = wide if config.moe and module[1] == config.moe.router and "router" in config.unrounded else dtype
        return linear_of(f"{name}.weight", kept, load(f"{name}.bias") if config.has_bias(module[1]) else None)

    def norm(name: str) -> Array:
        weight = load(f"{name}.weight")
        if config.norms.plus_one:
            weight = widen(weight, wide) + 1
        if not config.norms.centred:
            return weight
        parts = [rounded(weight, dtype), load(f"{name}.bias")] if config.norms.bias else [rounded(weight, dtype)]
        return namespace(weight).stack([widen(part, wide) for part in parts])

    def norm_of_layer(i: int, name: str) -> Array:
        if name == config.norms.v:
            return to_device(np.ones(config.norm_width(name, i), wide), device)
        return norm(f"model.layers.{i}.{name}")

    def vector(name: str) -> Array:
        return load(name, dtype if name.endswith(SINKS) else wide)

    def layer(i: int) -> Layer:
        return Layer(
            {name: norm_of_layer(i, name) for name in config.norms_of(i)},
            {name: linear((i, name)) for name in config.modules_of(i)},
            {name: vector(f"model.layers.{i}.{name}") for name in config.vectors_of(i)},
        )

    embed_tokens = load("model.embed_tokens.weight")
    layers = tuple(layer(i) for i in range(config.num_hidden_layers))
    score = Linear(load("score.weight")) if config.labels else None
    lm_head = Linear(embed_tokens) if config.tie_word_embeddings or score else linear(LM_HEAD)
    inputs = None
    if config.hidden_size_per_layer_input:
        table, weight = load("model.embed_tokens_per_layer.weight"), norm("model.per_layer_projection_norm")
        inputs = LayerInputs(table, linear(LAYER_INPUTS), weight)
    return Model(config, embed_tokens, layers, norm("model.norm"), lm_head, tokenizer, dtype, device, inputs, score)
