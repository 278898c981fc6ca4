"""Fold an adapter into a copy of the base: W' = W + scale B A. What one would serve without multi-LoRA.

The copy is a model of its own, as large as the base; N adapters make N of them. It answers the same as base + adapter
up to rounding, which is how the one is checked by the other.
"""

import dataclasses

from ..adapter import Adapter
from ..arrays import DTYPES, Array, to_device, widen
from ..config import EMBED, LAYER_MODULES, LM_HEAD, Module
from ..lora import LoraWeights
from ..ops import NUMPY, Ops
from ..weights import Linear, Model


def merged(model: Model, adapter: Adapter, ops: Ops = NUMPY) -> Model:
    """The base with the adapter folded in (PEFT's merge_and_unload), in the base's dtype. Tied heads are untied."""
    bound = ops.bind_adapter(adapter, model.config, ops.adapter_scale)

    def one(module: Module) -> Linear:
        own = model.linear(module)
        weight = bound.weights.get(module, own.weight)
        bias = bound.biases.get(module, own.bias)
        w = bound.lora.get(module)
        if w is None:
            return Linear(weight, bias)
        return Linear(folded(model, weight, w, module), bias if w.bias is None else added_bias(model, bias, w))

    layers = tuple(
        dataclasses.replace(layer, **{m: one((i, m)) for m in LAYER_MODULES})  # type: ignore[arg-type]
        for i, layer in enumerate(model.layers)
    )
    return dataclasses.replace(model, embed_tokens=one(EMBED).weight, layers=layers, lm_head=one(LM_HEAD))


def folded(model: Model, weight: Array, w: LoraWeights, module: Module) -> Array:
    """W + scale B A; at the embedding, whose rows are looked up, the transpose of it."""
    compute = "float64" if model.dtype == "float64" else "float32"
    a, b = (widen(to_device(x, model.device), compute) for x in (w.A, w.B))
    delta = w.scale * (b @ a)
    full = widen(to_device(weight, model.device), compute) + (delta.T if module == EMBED else delta)
    return full.astype(DTYPES[model.dtype])


def added_bias(model: Model, bias: Array | None, w: LoraWeights) -> Array:
    """b + scale * (bias of lora_B)."""
    extra = w.scale * to_device(w.bias, model.device)  # type: ignore[arg-type]
    return (extra if bias is None else bias + extra).astype(DTYPES[model.dtype])
