"""An adapter bound to one model, and the slots that hold the adapters in use.

Adapter        what the folder holds: A, B, alpha, which modules            (adapter.py)
BoundAdapter   what it changes in this model: A, B and scale of each module
AdapterSlots   slot -> the same in the types and on the device of the forward pass
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .adapter import Adapter, PeftConfig, TokenRows, lora_alpha_of
from .arrays import Array, Float, Precision, rounded, to_device, widen
from .config import EMBED, ModelConfig, Module
from .dora import Dora, dora_gain
from .weights import Base, Linear


@dataclass(frozen=True, eq=False, slots=True)
class LoraWeights:
    """One adapter in one module, ready to be applied. On a CPU B lies column by column: a product with few tokens takes
    a third to half of the time then, as the one with A, which lies row by row, does (lora.expand)."""

    A: Float[Array, "rank d_in"]
    B: Float[Array, "d_out rank"]
    scale: float
    bias: Float[Array, " d_out"] | None = None  # of lora_B (PEFT's lora_bias), scaled like the rest
    magnitude: Float[Array, " d_out"] | None = None  # DoRA: how long each row of W + scale B A is to be
    dora: Dora | None = None  # made of the magnitude when a slot is filled (AdapterSlots.put)


@dataclass(frozen=True, eq=False)
class BoundAdapter:
    """All that one adapter changes in one model."""

    lora: Mapping[Module, LoraWeights]
    replaced: Mapping[Module, Array]  # whole layers that it brings along: modules_to_save
    biases: Mapping[Module, Array]  # biases of base layers that it brings along: bias="all"
    tokens: Mapping[Module, TokenRows] = field(default_factory=dict)  # rows of some tokens that it brings along


def adapter_scale(alpha: float, r: int, use_rslora: bool) -> float:
    """alpha / r (Hu et al. 2021), or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023)."""
    return alpha / math.sqrt(r) if use_rslora else alpha / r


def scale_of(config: PeftConfig, module: Module, r: int) -> float:
    """The scale of one module, as PEFT has it: its alpha (alpha_pattern's or lora_alpha), its rank, rsLoRA or not."""
    return adapter_scale(lora_alpha_of(config, module), r, config.use_rslora)


def bind_adapter(
    adapter: Adapter, config: ModelConfig, scale: Callable[[float, int, bool], float] = adapter_scale
) -> BoundAdapter:
    """Which A, B and scale each module gets. alpha_pattern overrides lora_alpha by the module's dotted name, as in
    peft/tuners/lora/model.py (_create_and_replace); the rank is that of the tensors (checked when they were loaded)."""
    lora = {}
    for module, tensors in adapter.lora.items():
        alpha = lora_alpha_of(adapter.config, module)
        factor = scale(alpha, tensors.A.shape[0], adapter.config.use_rslora)
        lora[module] = LoraWeights(tensors.A, tensors.B, factor, tensors.bias, tensors.magnitude)
    return BoundAdapter(lora, adapter.replaced, adapter.biases, adapter.tokens)


def by_columns(B: Float[Array, "d_out rank"]) -> Float[Array, "d_out rank"]:
    """Return B as it lies in LoraWeights, read-only. Files, pages and a GPU have it row by row."""
    if not isinstance(B, np.ndarray):
        return B
    B = np.asfortranarray(B)
    B.setflags(write=False)
    return B


class AdapterSlots:
    """The adapters that a batch can use: slot -> weights, each stored once, at its own rank (vLLM's LoRA slots).

    It knows nothing of when to load or evict (adapter_cache.py does). A slot number is only good for the batch it was
    made for: whoever keeps numbers longer must use the digest.
    """

    def __init__(self, model: Base, p: Precision, gain: Callable[..., Array] = dora_gain) -> None:
        self.model: Any = model  # of its own class, for whoever knows which
        self.precision, self._gain = p, gain
        self._lora: dict[Module, dict[int, LoraWeights]] = {}
        self._base: dict[Module, dict[int, Linear]] = {}
        self.slots: set[int] = set()  # those that are filled

    def put(self, slot: int, bound: BoundAdapter) -> None:
        """Fill a slot, in the types and on the device of the forward pass; what it held before is gone.

        AdapterError for a DoRA that this base makes impossible (dora_gain): the slot is as it was then."""
        ready, replaced = self.prepared(bound)
        self.remove(slot)
        self.slots.add(slot)
        for module, lora in ready.items():
            self._lora.setdefault(module, {})[slot] = lora
        for module, base in replaced.items():
            self._base.setdefault(module, {})[slot] = base

    def prepared(self, bound: BoundAdapter) -> tuple[dict[Module, LoraWeights], dict[Module, Linear]]:
        """Return what a slot will hold: LoRA weights as they are multiplied, and the base layers that come along.

        AdapterError as in put."""
        replaced = {
            module: self._base_with(module, bound) for module in {*bound.replaced, *bound.biases, *bound.tokens}
        }
        return {
            module: self._ready(lora, module, replaced.get(module)) for module, lora in bound.lora.items()
        }, replaced

    def remove(self, slot: int) -> None:
        """Empty a slot; an empty one stays so."""
        self.slots.discard(slot)
        for lora in self._lora.values():
            lora.pop(slot, None)
        for base in self._base.values():
            base.pop(slot, None)

    def at(self, module: Module) -> Mapping[int, LoraWeights]:
        """Return the LoRA weights of each slot that has some in this module."""
        return self._lora.get(module, {})

    def shapes(self, module: Module) -> dict[int, tuple[int, int]]:
        """Return (d_out, d_in) of each slot that has LoRA weights in this module."""
        return {slot: (lora.B.shape[0], lora.A.shape[1]) for slot, lora in self.at(module).items()}

    def base_at(self, module: Module) -> Mapping[int, Linear]:
        """Return the base layer of each slot that brings its own for this module: all of it, its bias or some rows."""
        return self._base.get(module, {})

    @property
    def reserved(self) -> int:
        """The memory of all slots in bytes. Here nothing is reserved: what the adapters take."""
        return sum(self.nbytes(slot) for slot in self.slots)

    @property
    def free(self) -> int:
        """The part of `reserved` in which no adapter is, in bytes."""
        return 0

    def nbytes(self, slot: int) -> int:
        """The size of one slot's LoRA weights in bytes."""
        modules = [lora[slot] for lora in self._lora.values() if slot in lora]
        gains = [lora.dora.gain.nbytes for lora in modules if lora.dora is not None]
        return sum(gains) + sum(x.nbytes for lora in modules for x in (lora.A, lora.B, lora.bias) if x is not None)

    def _base_with(self, module: Module, bound: BoundAdapter) -> Linear:
        base, weight, bias = self.model.linear(module), bound.replaced.get(module), bound.biases.get(module)
        tokens, device = bound.tokens.get(module), self.model.device
        if tokens is not None:  # held in the type of the table, as in PEFT
            rows = rounded(widen(to_device(tokens.rows, device), self.precision.compute), self.model.dtype)
            tokens = TokenRows(to_device(tokens.ids, device), rows)
        return Linear(
            base.weight if weight is None else to_device(weight, device),
            base.bias if bias is None else to_device(bias, device),
            tokens,
        )

    def _ready(self, lora: LoraWeights, module: Module, replaced: Linear | None) -> LoraWeights:
        bias = None if lora.bias is None else self._prepared(lora.bias)
        B = by_columns(self._prepared(lora.B))
        ready = LoraWeights(self._prepared(lora.A), B, lora.scale, bias, lora.magnitude)
        if lora.magnitude is None:
            return ready
        base = replaced or self.model.linear(module)
        weight, magnitude = base.weight.T if module == EMBED else base.weight, self._prepared(lora.magnitude)
        gain = self._gain(weight, ready.A, ready.B, lora.scale, magnitude, module)
        base_bias = None if base.bias is None else widen(base.bias, self.precision.compute)
        return replace(ready, dora=Dora(self._prepared(gain), base_bias))

    def _prepared(self, x: Array) -> Array:
        x = rounded(widen(to_device(x, self.model.device), self.precision.compute), self.precision.adapter)
        if isinstance(x, np.ndarray):
            x.setflags(write=False)
        return x
