"""Merge an adapter into a copy of the base: W' = W + scale B A, or gain * that with DoRA.

What one would serve without multi-LoRA. The copy is a model of its own, as large as the base; N adapters make N of
them. It answers the same as base + adapter up to rounding, which is how the one is checked by the other.
"""

import dataclasses

from ..adapter import Adapter
from ..adapter_slots import LoraWeights
from ..arrays import DTYPES, Array, rounded, to_device, widen
from ..config import EMBED, LM_HEAD, SCORE, Module
from ..dora import dora_gain
from ..errors import AdapterError
from ..ops import NUMPY, Ops
from ..pictures.weights import PictureModel
from ..weights import Base, Linear, Model


def merged(model: Model, adapter: Adapter, ops: Ops = NUMPY) -> Model:
    """The base with the adapter merged into it (PEFT's merge_and_unload), in its dtype. Tied heads are untied.

    A quantised base (GGUF, nf4) is merged as the numbers that it stands for, and the result is not quantised. Whoever
    quantises it again, as merging in 4 bits does, rounds W + scale B A to the steps of a block: what is less than half
    of one is lost."""
    check_mergeable(adapter)
    bound = ops.bind_adapter(adapter, model.config, ops.adapter_scale)

    def one(module: Module) -> Linear:
        base = model.linear(module)
        weight, bias = bound.replaced.get(module, base.weight), bound.biases.get(module, base.bias)
        if (tokens := bound.tokens.get(module)) is not None:
            weight = held_as(model, wide(model, weight).copy())
            weight[tokens.ids] = held_as(model, wide(model, tokens.rows))
        lora = bound.lora.get(module)
        if lora is None:
            return Linear(weight, bias)
        return Linear(
            merged_weight(model, weight, lora, module), bias if lora.bias is None else merged_bias(model, bias, lora)
        )

    layers = tuple(
        dataclasses.replace(layer, linears={name: one((i, name)) for name in layer.linears})
        for i, layer in enumerate(model.layers)
    )
    embed_tokens = one(EMBED).weight
    # A vocabulary may have grown; and layers that are read again are layers of their own now.
    config = dataclasses.replace(model.config, vocab_size=len(embed_tokens), layer_replication=())
    return dataclasses.replace(model, config=config, embed_tokens=embed_tokens, layers=layers, lm_head=one(LM_HEAD))


def check_mergeable(adapter: Adapter) -> None:
    """AdapterError for an adapter that acts on some tokens only, or has a head that the base has not."""
    if SCORE in adapter.replaced:
        raise AdapterError(f"adapter {adapter.name} brings a classification head (score) along: it is not merged")
    if adapter.config.alora_invocation_tokens:
        why = "acts only from its invocation on (alora_invocation_tokens), and merged weights act on every token"
        raise AdapterError(f"adapter {adapter.name} {why}")


def merged_picture_model(model: PictureModel, adapter: Adapter, ops: Ops = NUMPY) -> PictureModel:
    """The same for a model of pictures: a base of one style, whose every picture has it."""
    bound = ops.bind_adapter(adapter, model.config, ops.adapter_scale)  # type: ignore[arg-type]  # reads no field of it
    linears = dict(model.linears)
    for module, lora in bound.lora.items():
        base = linears[module]
        bias = base.bias if lora.bias is None else merged_bias(model, base.bias, lora)
        linears[module] = Linear(merged_weight(model, base.weight, lora, module), bias)
    return dataclasses.replace(model, linears=linears)


def merged_weight(model: Base, weight: Array, lora: LoraWeights, module: Module) -> Array:
    """W + scale B A; at the embedding, whose rows are looked up, the transpose of it. With DoRA times the gain."""
    A, B, W = wide(model, lora.A), wide(model, lora.B), wide(model, weight)
    delta = lora.scale * (B @ A)
    sums = W + (delta.T if module == EMBED else delta)
    if lora.magnitude is not None:
        by_row = W.T if module == EMBED else W
        gain = wide(model, dora_gain(by_row, A, B, lora.scale, wide(model, lora.magnitude), module))
        sums *= gain if module == EMBED else gain[:, None]
    return held_as(model, sums)


def merged_bias(model: Base, bias: Array | None, lora: LoraWeights) -> Array:
    """b + scale * (bias of lora_B)."""
    extra = lora.scale * wide(model, lora.bias)  # type: ignore[arg-type]
    return held_as(model, extra if bias is None else wide(model, bias) + extra)


def wide(model: Base, x: Array) -> Array:
    """The numbers in the type of sums, on the model's device: no half type is put on a GPU."""
    return to_device(widen(x, "float64" if model.dtype == "float64" else "float32"), model.device)


def held_as(model: Base, x: Array) -> Array:
    """The numbers as the model holds its weights: in its dtype, or on a GPU rounded to it (load_model)."""
    return x.astype(DTYPES[model.dtype]) if model.device == "cpu" else rounded(x, model.dtype)
