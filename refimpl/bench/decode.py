"""A decode step of a model with random weights: one request for each adapter, all in one batch or one after another."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..adapter import PeftConfig
from ..adapter_slots import AdapterSlots, bind_adapter
from ..arrays import Array, Float, Precision, ceil_div, device_namespace, to_host
from ..batch import ScheduledRequest, make_batch
from ..config import LAYER_MODULES, ModelConfig
from ..kv_cache import KVCache
from ..model import forward
from ..ops import Ops
from ..plans import Batch
from ..synthetic.adapters import random_adapter
from ..synthetic.models import Recipe, random_model
from ..weights import Model

BLOCK_SIZE = 16


@dataclass(frozen=True)
class Shape:
    """The widths of a Llama, in the proportions of the 8B one unless they are given."""

    hidden: int
    heads: int
    kv_heads: int
    layers: int = 1
    vocab: int = 128

    @classmethod
    def llama_8b(cls, layers: int = 1) -> "Shape":
        """Its layers; a small vocabulary, because a layer is what is measured."""
        return cls(hidden=4096, heads=32, kv_heads=8, layers=layers, vocab=1024)

    def config(self) -> ModelConfig:
        """As a checkpoint would say it."""
        return ModelConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 7 // 2,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
        )


def model_of(shape: Shape, dtype: str, device: str = "cpu") -> Model:
    """Return a random model of these widths."""
    rng = device_namespace(device).random.default_rng(0)
    return random_model(shape.config(), rng, dtype, Recipe(number=np.float32), device=device)


def random_slots(model: Model, adapters: int, rank: int, p: Precision) -> AdapterSlots:
    """Return slots with so many adapters, no two alike, in every linear layer of the model's layers."""
    slots, rng = AdapterSlots(model, p), device_namespace(model.device).random.default_rng(1)
    peft = PeftConfig(rank, rank / 2, target_modules=LAYER_MODULES)
    for slot in range(adapters):
        slots.put(slot, bind_adapter(random_adapter(model.config, peft, f"adapter-{slot}", rng), model.config))
    return slots


@dataclass(frozen=True, eq=False)
class Decoding:
    """The same step again and again, on top of the same cache."""

    step: Callable[[Batch], Float[Array, "requests vocab"]]
    everyone: Batch
    nobody: Batch  # the same requests without their adapters
    each: list[Batch]

    def batched(self) -> Float[Array, "requests vocab"]:
        """One step for all requests: their logits, on the host, as a sampler wants them."""
        return to_host(self.step(self.everyone))

    def without_adapters(self) -> Float[Array, "requests vocab"]:
        """One step of the base alone for all requests."""
        return to_host(self.step(self.nobody))

    def one_after_another(self) -> Float[Array, "requests vocab"]:
        """A step for each."""
        return np.concatenate([to_host(self.step(batch)) for batch in self.each])


def decoding(model: Model, adapters: int, rank: int, context: int, ops: Ops) -> Decoding:
    """One request for each adapter, each after `context` tokens; `ops` and the adapters are those of a server."""
    p = Precision(ops.precision, model.dtype)
    slots = random_slots(model, adapters, rank, p)
    return decoding_with(model, slots, adapters, context, ops)


def decoding_with(model: Model, slots: AdapterSlots, adapters: int, context: int, ops: Ops) -> Decoding:
    """The same with the first so many adapters of slots that are filled already."""
    p, blocks = Precision(ops.precision, model.dtype), ceil_div(context + 1, BLOCK_SIZE)
    steps = ops.select_victim, ops.latent.kv_shape
    cache = KVCache(model.config, adapters * blocks, BLOCK_SIZE, p, model.device, *steps)
    rng: Any = device_namespace(model.device).random.default_rng(2)
    cache.memory[...] = rng.standard_normal(cache.memory.shape, dtype=np.float32)
    work = [
        ScheduledRequest([7 + adapter % 100], context, cache.allocate(blocks), [(adapter, 1.0)])
        for adapter in range(adapters)
    ]

    def step(batch: Batch) -> Array:
        return forward(model, batch, cache, slots, ops, p)

    batch, base = (
        make_batch(requests, cache, slots, ops)
        for requests in (work, [replace(request, adapters=()) for request in work])
    )
    return Decoding(step, batch, base, [make_batch([request], cache, slots, ops) for request in work])


def with_half_products(ops: Ops) -> Ops:
    """For a GPU: the base's own products in float16 with float32 sums, by cuBLAS, as an engine takes them; the table's
    own way widens the weights piece by piece."""

    def linear(x: Array, weight: Array, bias: Array | None, p: Precision) -> Array:
        if weight.dtype != np.float16 or bias is not None:
            return ops.linear(x, weight, bias, p)
        return (x.astype(np.float16) @ weight.T).astype(np.float32)

    return replace(ops, linear=linear)
