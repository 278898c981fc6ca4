"""LoRA: a low-rank correction, chosen per token.

    y[t] += weight * scale * B (A x[t])      for each adapter that token t's request asked for

Two forms of `lora_delta`: the definition, one token at a time, and the one that runs, one adapter at a time. Around
them: how an adapter is bound to a model (which alpha, which scale), and the slots that hold those in use.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from .adapter import Adapter, PeftConfig, TokenRows, lora_alpha_of
from .arrays import Array, Float, Precision, namespace, rounded, to_device, to_host, widen
from .config import EMBED, ModelConfig, Module
from .dora import Dora, dora_delta, dora_gain
from .plans import NO_ADAPTER, LoraMapping
from .weights import Linear, Model


@dataclass(frozen=True, eq=False, slots=True)
class LoraWeights:
    """One adapter in one module, ready to be applied."""

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
    weights: Mapping[Module, Array]  # whole layers that it brings along: modules_to_save
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


def digest(bound: BoundAdapter) -> bytes:
    """SHA-256 of everything that the adapter changes: effective A, B, scale, magnitude, and what it replaces."""
    h = hashlib.sha256()

    def add(kind: str, module: Module, *arrays: Array | None) -> None:
        h.update(f"{kind} {module[0]} {module[1]}".encode())
        for x in arrays:
            h.update(b"none" if x is None else f"{x.dtype.name} {x.shape}".encode())
            h.update(b"" if x is None else np.ascontiguousarray(to_host(x)).view(np.uint8).data)

    for module in sorted(bound.lora):
        lora = bound.lora[module]
        add("lora", module, lora.A, lora.B, np.float64(lora.scale).reshape(1), lora.bias)
        if lora.magnitude is not None:
            add("magnitude", module, lora.magnitude)
    for module in sorted(bound.weights):
        add("weight", module, bound.weights[module])
    for module in sorted(bound.biases):
        add("bias", module, bound.biases[module])
    for module in sorted(bound.tokens):
        add("tokens", module, bound.tokens[module].ids, bound.tokens[module].rows)
    return h.digest()


class AdapterSlots:
    """The adapters that a batch can use: slot -> weights, each stored once, at its own rank (vLLM's LoRA slots).

    It knows nothing of when to load or evict (adapter_cache.py does). A slot number is only good for the batch it was
    made for: whoever keeps numbers longer must use the digest.
    """

    def __init__(self, model: Model, p: Precision) -> None:
        self.model, self.precision = model, p
        self._lora: dict[Module, dict[int, LoraWeights]] = {}
        self._base: dict[Module, dict[int, Linear]] = {}
        self.slots: set[int] = set()  # those that are filled

    def put(self, slot: int, bound: BoundAdapter) -> None:
        """Fill a slot, in the types and on the device of the forward pass; what it held before is gone.

        AdapterError for a DoRA that this base makes impossible (dora_gain): the slot is as it was then."""
        replaced = {module: self._base_with(module, bound) for module in {*bound.weights, *bound.biases, *bound.tokens}}
        ready = {module: self._ready(lora, module, replaced.get(module)) for module, lora in bound.lora.items()}
        self.remove(slot)
        self.slots.add(slot)
        for module, lora in ready.items():
            self._lora.setdefault(module, {})[slot] = lora
        for module, base in replaced.items():
            self._base.setdefault(module, {})[slot] = base

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

    def base_at(self, module: Module) -> Mapping[int, Linear]:
        """Return the base layer of each slot that brings its own for this module: all of it, its bias or some rows."""
        return self._base.get(module, {})

    def nbytes(self, slot: int) -> int:
        """The memory of one slot's LoRA weights."""
        modules = [lora[slot] for lora in self._lora.values() if slot in lora]
        gains = [lora.dora.gain.nbytes for lora in modules if lora.dora is not None]
        return sum(gains) + sum(x.nbytes for lora in modules for x in (lora.A, lora.B, lora.bias) if x is not None)

    def _base_with(self, module: Module, bound: BoundAdapter) -> Linear:
        base, weight, bias = self.model.linear(module), bound.weights.get(module), bound.biases.get(module)
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
        ready = LoraWeights(self._prepared(lora.A), self._prepared(lora.B), lora.scale, bias, lora.magnitude)
        if lora.magnitude is None:
            return ready
        base = replaced or self.model.linear(module)
        weight, magnitude = base.weight.T if module == EMBED else base.weight, self._prepared(lora.magnitude)
        gain = dora_gain(weight, ready.A, ready.B, lora.scale, magnitude, module)
        base_bias = None if base.bias is None else widen(base.bias, self.precision.compute)
        return replace(ready, dora=Dora(self._prepared(gain), base_bias))

    def _prepared(self, x: Array) -> Array:
        x = rounded(widen(to_device(x, self.model.device), self.precision.compute), self.precision.adapter)
        if isinstance(x, np.ndarray):
            x.setflags(write=False)
        return x


def added_by(
    lora_delta: Callable[..., None],
    y: Float[Array, "tokens d_out"],
    x: Array,
    module: Module,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
) -> Float[Array, "tokens d_out"]:
    """What a form of lora_delta adds to y, which stays as it is.

    Plain LoRA adds the same to zeros, and nothing of it is lost there. What DoRA adds depends on y; where that is -inf,
    beyond the vocabulary of a row, it is 0."""
    dora = any(lora.dora is not None for lora in adapters.at(module).values())
    after = y.copy() if dora else namespace(y).zeros_like(y)
    lora_delta(after, x, module, adapters, mapping, p)
    if not dora:
        return after
    with np.errstate(invalid="ignore"):
        return rounded(namespace(y).where(after == y, 0, after - y), p.linear)


def shrink(x: Array, A: Float[Array, "rank d_in"]) -> Float[Array, "tokens rank"]:
    """x A^T. Token ids stand for one-hot rows, so that for the embedding the product is a look-up of A's columns."""
    return A[:, x].T if x.dtype.kind in "iu" else x @ A.T


def lora_delta_per_token(
    y: Float[Array, "tokens d_out"],
    x: Array,
    module: Module,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
) -> None:
    """The definition: y[t] += weight * scale * B (A x[t]), in place. With DoRA: dora_delta, whose weight is always 1.

    A row whose ids are all -1, or whose adapters leave this module alone, is not touched. x is [tokens, d_in], or token
    ids [tokens] at the embedding."""
    resident = adapters.at(module)
    for t in range(y.shape[0]):
        for slot, weight in zip(mapping.adapter_ids[t], mapping.adapter_weights[t], strict=True):
            if slot == NO_ADAPTER or slot not in resident:
                continue
            lora = resident[slot]
            low = lora.A[:, x[t]] if x.dtype.kind in "iu" else lora.A @ x[t]
            delta = lora.B @ rounded(low, p.lora_rank)
            if lora.bias is not None:
                delta = delta + lora.bias
            delta = delta * y.dtype.type(lora.scale * weight)
            out = y[t, : delta.shape[0]]  # y may be wider: another request's adapter may extend the vocabulary
            if lora.dora is not None:
                delta = dora_delta(out, delta, lora.dora, p)
            out[:] = rounded(out + rounded(delta, p.lora_delta), p.linear)


def lora_delta(
    y: Float[Array, "tokens d_out"],
    x: Array,
    module: Module,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
    shrink: Callable[[Array, Array], Array] = shrink,
) -> None:
    """The same, one segment at a time: gather its rows, shrink, expand, scale, add back (Punica's SGMV)."""
    resident = adapters.at(module)
    if not resident:
        return
    for column in mapping.device.columns:
        for segment in column.segments:
            if segment.slot not in resident:
                continue
            lora, rows = resident[segment.slot], segment.rows
            delta = rounded(shrink(x[rows], lora.A), p.lora_rank) @ lora.B.T
            if lora.bias is not None:
                delta += lora.bias
            delta *= lora.scale * segment.weight
            out = y[rows, : lora.B.shape[0]]  # y may be wider: another request's adapter may extend the vocabulary
            if lora.dora is not None:
                delta = dora_delta(out, delta, lora.dora, p)
            y[rows, : lora.B.shape[0]] = rounded(out + rounded(delta, p.lora_delta), p.linear)
