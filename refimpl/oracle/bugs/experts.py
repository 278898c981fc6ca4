"""A, E, F, G in a mixture of experts (moe.py): what goes wrong with the LoRA of experts, and of what all tokens share.

Engines hold the experts of a layer in one tensor, and read an adapter's experts into one as well; the MLP that all
tokens share, and the dense layers beside them, are other code.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ...adapter import Adapter
from ...adapter_slots import AdapterSlots, BoundAdapter, LoraWeights
from ...arrays import Array, Precision
from ...config import Module, Moe
from ...ops import Ops
from ...plans import LoraMapping
from ...routing import sigmoid
from .a_scale import scale
from .b_identity import only_base
from .e_layout import layout
from .f_not_applied import not_applied
from .g_kernels import kernels
from .steps import add, binding, but, loading, remapped

LORA = "experts LoRA"
LARGEST = 448.0  # of a float8 with four bits of exponent: FP8 scales a row so that its largest number is this


def moe_of(config: Any) -> Moe | None:
    """The experts of a base; none where there are none, and none in a model of pictures."""
    return getattr(config, "moe", None)


def in_expert(module: Module, config: Any) -> bool:
    """Whether it is a linear layer of an expert."""
    moe = moe_of(config)
    return moe is not None and moe.expert_of(module[1]) is not None


def at_experts(change: Callable[[LoraWeights, Adapter], LoraWeights | None], down: bool = True) -> Ops:
    """The LoRA of experts is changed when it is loaded; None: it is not loaded. down: not that of gate and up alone."""

    def changed(bound: BoundAdapter, adapter: Adapter, config: Any) -> BoundAdapter:
        def concerned(module: Module) -> bool:
            return in_expert(module, config) and (down or not module[1].endswith(f".{config.moe.down}"))

        after = {module: change(lora, adapter) if concerned(module) else lora for module, lora in bound.lora.items()}
        return dataclasses.replace(bound, lora={module: lora for module, lora in after.items() if lora is not None})

    return binding(changed)


# The scale.


@scale.bug(
    "alpha / r at experts, although the adapter says rsLoRA: their ranks are read anew when they are stacked",
    "https://github.com/vllm-project/vllm/issues/55545",
    needs="experts rsLoRA",
)
def rslora_ignored_at_experts() -> Ops:
    def change(lora: LoraWeights, adapter: Adapter) -> LoraWeights:
        by = math.sqrt(len(lora.A)) if adapter.config.use_rslora else 1.0
        return dataclasses.replace(lora, scale=lora.scale / by)

    return at_experts(change)


@scale.bug(
    "rsLoRA is sqrt(2) too strong at gate and up of experts: alpha and r were doubled when the two became one tensor",
    needs="experts rsLoRA",
)
def rslora_of_the_doubled_rank_at_experts() -> Ops:
    def change(lora: LoraWeights, adapter: Adapter) -> LoraWeights:
        return dataclasses.replace(lora, scale=lora.scale * (math.sqrt(2) if adapter.config.use_rslora else 1.0))

    return at_experts(change, down=False)


# The layout.


@layout.bug(
    "B of all experts in one tensor is read as if the expert came before the rank; it is the other way round",
    "https://github.com/vllm-project/vllm/pull/31534",
    "https://github.com/unslothai/unsloth-zoo/pull/1269",
    needs=LORA,
)
def expert_B_read_expert_slow() -> Ops:
    def reread(bound: BoundAdapter, adapter: Adapter, config: Any) -> BoundAdapter:
        lora = dict(bound.lora)
        of_layer: dict[tuple[int, str], list[Module]] = {}
        for module in filter(lambda module: in_expert(module, config), lora):
            of_layer.setdefault((module[0], module[1].rpartition(".")[2]), []).append(module)
        for modules in of_layer.values():
            if len({lora[module].B.shape for module in modules}) == 1:
                lora |= misread({module: lora[module] for module in modules})
        return dataclasses.replace(bound, lora=lora)

    return binding(reread)


def misread(experts: Mapping[Module, LoraWeights]) -> dict[Module, LoraWeights]:
    """The experts of one layer: B[:, i, e] is at column i * experts + e of the tensor, and is read from e * r + i."""
    tensor = np.stack([lora.B for lora in experts.values()], axis=2)
    d_out, r, count = tensor.shape
    read = tensor.reshape(d_out, count, r)
    return {
        module: dataclasses.replace(lora, B=np.ascontiguousarray(read[:, i]))
        for i, (module, lora) in enumerate(experts.items())
    }


# Not applied.


@not_applied.bug("the LoRA of all experts is left out, that of what all tokens share is not", needs=LORA)
def experts_lora_dropped() -> Ops:
    return at_experts(lambda *call: None)


@not_applied.bug(
    "the LoRA of gate and up of every expert is left out",
    "https://github.com/unslothai/unsloth-zoo/issues/607",
    needs=LORA,
)
def experts_gate_and_up_dropped() -> Ops:
    return at_experts(lambda *call: None, down=False)


@not_applied.bug(
    "where there are experts, the LoRA of the MLP that all tokens share and of dense layers is left out",
    "https://github.com/huggingface/peft/issues/3711",
    needs="shared expert LoRA",
)
def shared_expert_lora_dropped() -> Ops:
    def change(module: Module, lora: LoraWeights, config: Any) -> LoraWeights | None:
        moe = moe_of(config)
        if moe is None or module[0] < 0:
            return lora
        shared = moe.shared.modules if moe.shared else ()
        return None if module[1] in (*shared, *config.mlp(module[0]).modules) else lora

    return loading(change)


# What the kernels compute.


def at_module(inside: Callable[..., None], among: Callable[[Module, Any], bool]) -> Ops:
    """lora_delta, but `inside` at these modules of a base's config."""

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        if among(module, adapters.model.config):
            inside(y, x, module, adapters, mapping, p)
        else:
            add(y, x, adapters.at(module), mapping, p)

    return but(lora_delta=delta)


@kernels.bug(
    "tokens without an adapter get one of those that chose the same expert: base requests change once there is LoRA",
    "https://github.com/vllm-project/vllm/issues/49063",
    needs=LORA,
)
def base_rows_of_experts_disturbed() -> Ops:
    changed = remapped(lambda ids, weights: (np.where(only_base(ids), ids.max(), ids), np.where(ids < 0, 1.0, weights)))

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        add(y, x, adapters.at(module), changed(mapping), p)

    return at_module(delta, in_expert)


@kernels.bug(
    "LoRA of experts reads hidden states that were quantised to FP8 for the base's product",
    "https://github.com/vllm-project/vllm/issues/42007",
    needs=LORA,
)
def experts_lora_on_quantised_inputs() -> Ops:
    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        unit = np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-12) / LARGEST
        quantised = (x / unit).astype(ml_dtypes.float8_e4m3fn).astype(x.dtype) * unit
        add(y, quantised, adapters.at(module), mapping, p)

    return at_module(delta, in_expert)


@kernels.bug(
    "the delta of the shared expert is multiplied by its gate twice: once alone, and once with the base",
    needs="gated shared expert LoRA",
)
def shared_delta_gated_twice() -> Ops:
    gates: list[Array] = []

    def among(module: Module, config: Any) -> bool:
        moe = moe_of(config)
        return moe is not None and moe.shared is not None and module[1] in (moe.shared_gate, moe.shared.down)

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        if module[1] == adapters.model.config.moe.shared_gate:
            add(y, x, adapters.at(module), mapping, p)
            gates[:] = [sigmoid(y)]
            return
        alone = np.zeros_like(y)
        add(alone, x, adapters.at(module), mapping, p)
        y += gates[0] * alone if gates else alone

    return at_module(delta, among)
