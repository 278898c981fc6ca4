"""One small model with everything in it that a forward pass can meet, on the host and on the device."""

from dataclasses import replace
from typing import Any

import numpy as np

from refimpl import Request
from refimpl.adapter import Adapter
from refimpl.arrays import DTYPES, to_device
from refimpl.config import EMBED, LM_HEAD, ModelConfig
from refimpl.weights import Layer, Linear, Model

from . import build

# A sliding window, biases, three query heads to a key head, no layer square.
CONFIG = ModelConfig(
    23,
    10,
    13,
    2,
    6,
    2,
    4,
    sliding_window=5,
    attention_bias=True,
    mlp_bias=True,
    max_position_embeddings=64,
    eos_token_ids=(1,),
)


def map_arrays(value: Any, change: Any) -> Any:
    """A model or a part of one with each of its arrays changed."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, tuple):
        return tuple(map_arrays(part, change) for part in value)
    if isinstance(value, (Linear, Layer)):
        return type(value)(**{name: map_arrays(getattr(value, name), change) for name in value.__dataclass_fields__})
    if isinstance(value, dict):
        return {name: map_arrays(part, change) for name, part in value.items()}
    return value


def model_of(dtype: str, device: str = "cpu", config: ModelConfig = CONFIG) -> Model:
    """The model in a type, on the host or on the device, where halves are float32 (refimpl/arrays.py, to_device)."""
    model = build.random_model(config, 5)
    names = ("embed_tokens", "layers", "norm", "lm_head")
    parts = {
        name: map_arrays(getattr(model, name), lambda x: to_device(x.astype(DTYPES[dtype]), device)) for name in names
    }
    return replace(model, **parts, dtype=dtype, device=device)


def requests_of(dtype: str) -> list[Request]:
    """Adapters of every kind, sums, the base alone: a ragged batch in which each is used, some of them twice."""
    pool = [
        build.random_adapter(CONFIG, 0, 3, lora_bias=True),
        build.random_adapter(CONFIG, 1, 5, use_rslora=True, modules=build.EVERYWHERE),
        build.random_adapter(CONFIG, 2, 2, modules=("v_proj", "down_proj", "embed_tokens")),
    ]
    pool = [build.as_dtype(adapter, dtype) for adapter in pool]
    own = with_own_layers(build.as_dtype(build.random_adapter(CONFIG, 3), dtype), dtype)
    chosen = [pool[0], None, pool[1], own, [(pool[0], 0.5), (pool[2], -1.5)], pool[2], None, pool[0]]
    rng = np.random.default_rng(0)
    return [
        Request(rng.integers(0, CONFIG.vocab_size, 1 + 3 * i % 11).tolist(), adapter, stop_ids=())
        for i, adapter in enumerate(chosen)
    ]


def with_own_layers(adapter: Adapter, dtype: str) -> Adapter:
    """The adapter with an embedding and a head of its own, longer by three words, and biases of its own."""
    rng = np.random.default_rng(4)
    shape = (CONFIG.vocab_size + 3, CONFIG.hidden_size)
    replaced = {module: rng.standard_normal(shape).astype(DTYPES[dtype]) for module in (EMBED, LM_HEAD)}
    biases = {
        module: rng.standard_normal(CONFIG.shape(module)[0]).astype(DTYPES[dtype])
        for module in CONFIG.modules()
        if CONFIG.has_bias(module[1])
    }
    return replace(adapter, replaced=replaced, biases=biases)
