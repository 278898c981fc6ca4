"""I. Merge and unmerge: an adapter is merged into the base, W' = W + scale B A; something of it stays, or is lost."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ...adapter_slots import AdapterSlots, LoraWeights
from ...arrays import Array, Precision, rounded, widen
from ...config import EMBED, ModelConfig, Module
from ...ops import Ops
from ...plans import NO_ADAPTER, LoraMapping
from ...weights import Linear
from .mutant import Family
from .steps import Plan, Slots, add, but, loading, only, reading, remapped, routing

merge = Family("I", "merge and unmerge")


def change_of_base(lora: LoraWeights, change: Array, module: Module) -> LoraWeights:
    """A change of the base's weight [d_out, d_in] as a LoRA of full rank: x change^T."""
    A, B = (change.T, np.eye(change.shape[1])) if module == EMBED else (np.eye(change.shape[1]), change)
    return LoraWeights(
        A.astype(lora.B.dtype), B.astype(lora.B.dtype), 1.0, None if lora.bias is None else lora.scale * lora.bias
    )


def delta_of(lora: LoraWeights, module: Module) -> Array:
    """scale B A in the layout of the base's weight."""
    product = lora.scale * (lora.B @ lora.A)
    return product.T if module == EMBED else product


@merge.bugs(
    ("bfloat16", "float16"),
    "W + scale B A is rounded to {}: what is small beside W is lost",
    "https://github.com/meta-pytorch/torchtune/issues/982",
    "https://github.com/OpenBMB/MiniCPM-V/issues/502",
    "https://github.com/huggingface/peft/issues/1035",
)
def merged_in(dtype: str) -> Ops:
    changes: dict[LoraWeights, LoraWeights] = {}  # a slot's weights are the same object from step to step

    def rounding(lora: LoraWeights, layer: Linear, module: Module) -> LoraWeights:
        W = widen(layer.weight, lora.B.dtype.name)
        return change_of_base(lora, rounded(W + delta_of(lora, module), dtype) - W, module)

    def merged(adapters: AdapterSlots, module: Module) -> Slots:
        at, replaced = adapters.at(module), adapters.base_at(module)
        for slot, lora in at.items():
            if lora not in changes:
                changes[lora] = rounding(lora, replaced.get(slot, adapters.model.linear(module)), module)
        return {slot: changes[lora] for slot, lora in at.items()}

    return but(lora_delta=reading(merged))


class Remembered:
    """Which slot of which adapters was merged last."""

    def __init__(self) -> None:
        self.slot: dict[AdapterSlots, int] = {}

    def update(self, adapters: AdapterSlots, ids: Array) -> int | None:
        """Note the batch's; the last one to be merged, or None."""
        if (ids >= 0).any():
            self.slot[adapters] = int(ids.max())
        return self.slot.get(adapters)


class Rows:
    """The mapping in which some rows of a batch have one slot at a weight of 1, and the others none."""

    def __init__(self, rows: Callable[[Array, int], Any]) -> None:
        self.rows, self.slot = rows, NO_ADAPTER
        self.mapping = remapped(self._of_slot)

    def __call__(self, mapping: LoraMapping, slot: int) -> LoraMapping:
        """For this slot. Made again when the batch or the slot is another."""
        if slot != self.slot:
            self.slot, self.mapping = slot, remapped(self._of_slot)
        return self.mapping(mapping)

    def _of_slot(self, ids: Array, weights: Array) -> Plan:
        chosen = only(self.rows(ids, self.slot), np.full(len(ids), self.slot, np.int32))[:, None]
        return chosen, np.ones(chosen.shape)


@merge.bug("an adapter is merged and never unmerged: every other request has its delta in its base")
def merged_and_never_unmerged() -> Ops:
    last, others = Remembered(), Rows(lambda ids, slot: np.logical_not((ids == slot).any(axis=1)))

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        add(y, x, adapters.at(module), mapping, p)
        slot = last.update(adapters, mapping.adapter_ids)
        if slot is not None:
            add(y, x, adapters.at(module), others(mapping, slot), p)

    return but(lora_delta=delta)


@merge.bug(
    "W + D - D is not W in bfloat16: after unmerging, the base is a little off",
    "https://github.com/huggingface/diffusers/issues/5313",
)
def unmerged_in_bfloat16() -> Ops:
    last, base_rows = Remembered(), Rows(lambda ids, slot: (ids < 0).all(axis=1))

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        add(y, x, adapters.at(module), mapping, p)
        slot = last.update(adapters, mapping.adapter_ids)
        lora = None if slot is None else adapters.at(module).get(slot)
        if slot is None or lora is None:
            return
        W, delta_W = widen(adapters.model.linear(module).weight, lora.B.dtype.name), delta_of(lora, module)
        merged_W = rounded(W + delta_W[: len(W)], "bfloat16")
        residue = change_of_base(lora, rounded(merged_W - delta_W[: len(W)], "bfloat16") - W, module)
        add(y, x, {slot: dataclasses.replace(residue, bias=None)}, base_rows(mapping, slot), p)

    return but(lora_delta=delta)


@merge.bug(
    "fan_in_fan_out: scale B A is transposed before it is added; silent where the layer is square",
    "https://github.com/huggingface/peft/issues/3531",
    "https://github.com/microsoft/LoRA/issues/103",
    needs="square layers",
)
def transposed_where_square() -> Ops:
    def transposed(module: Module, lora: LoraWeights, config: ModelConfig) -> LoraWeights:
        square = lora.A.shape[1] == len(lora.B) and module[0] >= 0
        return (
            dataclasses.replace(lora, A=np.ascontiguousarray(lora.B.T), B=np.ascontiguousarray(lora.A.T))
            if square
            else lora
        )

    return loading(transposed)


@merge.bug("of the adapters that a request sums, each but the first is merged at a weight of 1", needs="sum")
def later_weights_of_a_sum_ignored() -> Ops:
    def ones_after_the_first(ids: Array, weights: Array) -> Plan:
        first = np.arange(ids.shape[1]) == 0
        return ids, np.where(first | (ids < 0), weights, 1.0)

    return but(lora_delta=routing(ones_after_the_first))
