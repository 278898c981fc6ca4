"""A. Scale: the right product, times the wrong number. Every one of them leaves well-formed text."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ...adapter import Adapter, pattern_value
from ...adapter_slots import AdapterSlots, BoundAdapter, LoraWeights, bind_adapter
from ...arrays import Array, Precision
from ...config import ModelConfig, Module, module_name
from ...ops import Ops
from ...plans import LoraMapping
from .mutant import Family
from .steps import Scale, Slots, add, but, loading, only, reading, remapped, rescaling, routing

scale = Family("A", "scale")

# The formula.


@scale.bug(
    "alpha / r, although the adapter says rsLoRA: alpha / sqrt(r)",
    "https://github.com/NVIDIA/TensorRT-LLM/issues/1668",
    "https://github.com/vllm-project/vllm/issues/10798",
    "https://github.com/sgl-project/sglang/issues/40835",
    "https://github.com/predibase/lorax/issues/700",
    needs="rslora",
)
def rslora_ignored() -> Ops:
    return but(adapter_scale=lambda alpha, r, use_rslora: alpha / r)


@scale.bug("alpha / sqrt(r) for every adapter, rsLoRA or not")
def rslora_for_everyone() -> Ops:
    return but(adapter_scale=lambda alpha, r, use_rslora: alpha / math.sqrt(r))


@scale.bug(
    "alpha, not alpha / r: the delta is r times too large",
    "https://github.com/Blaizzy/mlx-vlm/issues/845",
    "https://github.com/rasbt/LLMs-from-scratch/issues/821",
    "https://github.com/openvinotoolkit/openvino.genai/pull/2525",
)
def alpha_for_alpha_over_r() -> Ops:
    return but(adapter_scale=lambda alpha, r, use_rslora: alpha)


@scale.bug(
    "no scale at all: B A x; invisible where alpha equals r",
    "https://github.com/hao-ai-lab/FastVideo/pull/870",
    "https://github.com/NVIDIA/TensorRT-LLM/issues/2022",
)
def scale_is_one() -> Ops:
    return but(adapter_scale=lambda alpha, r, use_rslora: 1.0)


@scale.bug(
    "divided by r twice: once in the file, once in the engine",
    "https://github.com/openvinotoolkit/openvino.genai/pull/2210",
)
def divided_by_r_twice() -> Ops:
    return rescaling(lambda module, lora, adapter: 1 / len(lora.A))


@scale.bug("r / alpha, upside down")
def r_over_alpha() -> Ops:
    return but(adapter_scale=lambda alpha, r, use_rslora: r / alpha if alpha else 0.0)


@scale.bug("scale applied in shrink and again in expand: its square")
def scale_applied_twice() -> Ops:
    return rescaling(lambda module, lora, adapter: lora.scale)


@scale.bugs(
    (0.5, 1.01, 1.05, 2.0),
    "every delta times {}: a factor lost or added between training and serving",
    "https://github.com/ml-explore/mlx-examples/issues/622",
    scales=True,
)
def scale_times(factor: float) -> Ops:
    return rescaling(lambda module, lora, adapter: factor)


@scale.bug("the delta is subtracted", scales=True)
def sign_flipped() -> Ops:
    return rescaling(lambda module, lora, adapter: -1.0)


# Whose rank, whose alpha.


@scale.bug(
    "the scale is made of the config's r, where rank_pattern gave the module another",
    "https://github.com/vllm-project/vllm-omni/pull/6565",
    needs="rank_pattern",
)
def rank_pattern_ignored() -> Ops:
    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        return bind_adapter(adapter, config, lambda alpha, r, rs: scale(alpha, adapter.config.r, rs))

    return but(bind_adapter=bind)


@scale.bug(
    "lora_alpha everywhere, where alpha_pattern gave the module another",
    "https://github.com/vllm-project/vllm-omni/pull/6565",
    needs="alpha_pattern",
)
def alpha_pattern_ignored() -> Ops:
    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        plain = dataclasses.replace(adapter.config, alpha_pattern={})
        return bind_adapter(dataclasses.replace(adapter, config=plain), config, scale)

    return but(bind_adapter=bind)


@scale.bug("alpha of the first module for all of them", needs="alpha_pattern")
def alpha_of_the_first_module() -> Ops:
    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        first = next((module_name(module) for module in config.modules() if module in adapter.lora), "")
        alpha = pattern_value(adapter.config.alpha_pattern, first, adapter.config.lora_alpha)
        return bind_adapter(adapter, config, lambda _, r, rs: scale(alpha, r, rs))

    return but(bind_adapter=bind)


@scale.bug(
    "the scale of every adapter is made of the largest rank in memory, to which all are padded", needs="mixed ranks"
)
def scale_of_the_padded_rank() -> Ops:
    def padded(adapters: AdapterSlots, module: Module) -> Slots:
        at = adapters.at(module)
        most = max((len(lora.A) for lora in at.values()), default=1)
        return {slot: dataclasses.replace(lora, scale=lora.scale * len(lora.A) / most) for slot, lora in at.items()}

    return but(lora_delta=reading(padded))


@scale.bug("one scale for all adapters: that of the adapter in the last slot")
def scale_of_the_last_adapter() -> Ops:
    def last(adapters: AdapterSlots, module: Module) -> Slots:
        at = adapters.at(module)
        return {slot: dataclasses.replace(lora, scale=at[max(at)].scale) for slot, lora in at.items()}

    return but(lora_delta=reading(last))


@scale.bug("one scale for all adapters: that of the adapter in the first slot")
def scale_of_the_first_adapter() -> Ops:
    def first(adapters: AdapterSlots, module: Module) -> Slots:
        at = adapters.at(module)
        return {slot: dataclasses.replace(lora, scale=at[min(at)].scale) for slot, lora in at.items()}

    return but(lora_delta=reading(first))


# The weight that a request gives an adapter.


@scale.bug(
    "a weighted adapter forgets its scale: set to the weight, instead of multiplied by it",
    "https://github.com/huggingface/diffusers/pull/5417",
    needs="weight",
)
def weight_replaces_the_scale() -> Ops:
    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        unscaled = {slot: dataclasses.replace(lora, scale=1.0) for slot, lora in adapters.at(module).items()}
        add(y, x, adapters.at(module), at_one(mapping), p)
        add(y, x, unscaled, weighted(mapping), p)

    at_one = remapped(lambda ids, weights: (only(weights == 1, ids), weights))
    weighted = remapped(lambda ids, weights: (only(weights != 1, ids), weights))
    return but(lora_delta=delta)


def weighing(change: Callable[[Array], Array]) -> Ops:
    """Other weights than the plan's."""
    return but(lora_delta=routing(lambda ids, weights: (ids, np.where(ids < 0, 0.0, change(weights)))))


@scale.bug("the weight of a request's adapter is ignored: always 1", needs="weight")
def weights_ignored() -> Ops:
    return weighing(np.ones_like)


@scale.bug("the weight is applied twice: its square", needs="weight")
def weight_squared() -> Ops:
    return weighing(np.square)


@scale.bug("the weights of a request are divided by their sum", needs="weight")
def weights_normalised() -> Ops:
    def normalised(weights: Array) -> Array:
        total = weights.sum(axis=1, keepdims=True)
        return weights / np.where(total == 0, 1, total)

    return weighing(normalised)


# The bias of lora_B.


@scale.bug(
    "the bias of lora_B is added without the scale; invisible where alpha equals r",
    "https://github.com/huggingface/peft/issues/2486",
    needs="lora_bias",
)
def lora_bias_unscaled() -> Ops:
    def unscaled(module: Module, lora: LoraWeights, config: ModelConfig) -> LoraWeights:
        return lora if lora.bias is None or not lora.scale else dataclasses.replace(lora, bias=lora.bias / lora.scale)

    return loading(unscaled)
