"""What a mix-up would add to a module's output: deltas of the form  s B (A x)  with one of the operands wrong.

    wrong operand     A, B, scale or bias of another adapter, module or layer; x of another token
    wrong part of it  ranks, rows, heads or inputs left out, swapped, rolled
    wrong place       before the rotation instead of behind it

A source is *added* with a coefficient c. What stands *instead* of the request's own delta is a source less that one, so
that c = 1 says so; the own delta with c = -1 is one that is missing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array, Float, Precision
from ...config import EMBED, LM_HEAD, ModelConfig, Module

EXACT = Precision("model", "float64")
RESIDUAL = "the residual stream"
GATE, UP, GATE_BEFORE = "the activated gate", "what the gate multiplies", "the gate before its activation"
# Kinds of sources that no row is computed with: what a cache gives of another request, or keeps of this one.
KEPT, STORED = "kept", "stored"
OF_THE_CACHE = (KEPT, STORED)
CHANGES = ("own", "instead", "bug", "part")  # of the own delta; what scales that scales them
NOBODY = ""  # the key of an adapter without weights: the base's own, for which another adapter may stand
PARTNERS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # those that engines fuse into one product


@dataclass(eq=False, slots=True)  # not frozen: thousands are made in a pass, and that takes three times as long
class Point:
    """One module in one pass over one request: all that a source is computed from."""

    module: Module
    x: Array  # [tokens, d_in]; token ids at the embedding
    config: ModelConfig
    weights: Mapping[str, Mapping[Module, LoraWeights]]  # every adapter that could be mixed up, by its key
    saved: Mapping[str, Mapping[Module, Array]]  # whole layers that it brings along, less the base's
    turns: Mapping[object, tuple[Array, Array]]  # rope -> cos and sin of each token's position
    weight: Array  # the base's
    inputs: Mapping[str, Array]  # of this layer's modules up to this one, by name, and RESIDUAL: what was normalised
    base_bias: Array | None = None

    def as_if(self, key: str, other: str) -> "Point":
        """The same where one adapter stands for another: key has what the other one has."""
        weights, saved = {**self.weights, key: self.weights[other]}, {**self.saved, key: self.saved[other]}
        return replace(self, weights=weights, saved=saved)

    def of(self, key: str, module: Module | None = None) -> LoraWeights | None:
        """An adapter's weights at this module, or at another one."""
        return self.weights[key].get(self.module if module is None else module)

    def full_delta(self, key: str) -> Float[Array, "tokens d_out"] | None:
        """All that an adapter adds to this module: its delta, or what its own layer does beyond the base's."""
        lora, layer = self.of(key), self.saved[key].get(self.module)
        if layer is not None:
            y = rows_of(layer, self.x) if self.x.dtype.kind in "iu" else self.x @ layer.T
            return y if lora is None else y + full_delta(self.x, lora)
        return None if lora is None else full_delta(self.x, lora)

    def beside(self, name: str) -> Module:
        """A module of the same layer."""
        return self.module[0], name


Delta = Callable[[Point], Array | None]  # [tokens, d_out]; None: it says nothing of this module
Times = Callable[[Point], float | None]  # how many times the own delta; None: it says nothing of this module


@dataclass(frozen=True, eq=False)
class Source:
    """One mix-up. `words` finish a sentence: "... in place of its own delta", "its own delta ... "."""

    key: str
    words: str
    delta: Delta
    kind: str = "part"  # own, part (of own), instead, added
    cost: float = 1.0  # bits, about: plain sources come before crooked ones where both explain
    same_as: str = ""  # a key; sources that have the same here make the same delta, whatever they are called
    members: tuple[str, ...] = ()  # keys: it is one of these in each request, whichever leaves least
    of_other: str | None = None  # the adapter of which it is the whole delta, in place of the own one
    times: Times | None = None  # if it is the own delta so many times
    is_partial: bool = False  # of kind "own": is it a part of that, or beside it?
    rounds: bool = False  # numbers that are computed: one near a tie may have been rounded to its other side

    @property
    def scales(self) -> bool:
        """Is it a multiple of the own delta? So it is, then, of what else is wrong with that."""
        return (self.kind == "own" and not self.is_partial) or self.times is not None

    def excess(self, point: Point) -> Array | None:
        """How often it adds the own delta, [tokens, 1]; None: not at this module."""
        times = 2.0 if self.times is None else self.times(point)
        return None if times is None else np.full((len(point.x), 1), times - 1)


def scaled(key: str, name: str, words: str, scale: Callable[[Point, LoraWeights], float | None], cost: float) -> Source:
    """An adapter's own delta at another scale. scale: of a module's weights; None: theirs."""

    def times(point: Point) -> float | None:
        lora = point.of(key)
        wrong = None if lora is None or not lora.scale else scale(point, lora)
        if lora is None or wrong is None or np.isclose(wrong, lora.scale, rtol=1e-9):
            return None
        return wrong / lora.scale

    def delta(point: Point) -> Array | None:
        lora, factor = point.of(key), times(point)
        return None if lora is None or factor is None else full_delta(point.x, lora) * (factor - 1)

    return Source(name, words, delta, "instead", cost, times=times)


def rows_of(table: Float[Array, "vocab d"], token_ids: Array) -> Float[Array, "tokens d"]:
    """The rows of these tokens; 0 for one that the table has not: another adapter may extend the vocabulary."""
    rows = np.zeros((len(token_ids), table.shape[1]), table.dtype)
    inside = token_ids < len(table)
    rows[inside] = table[token_ids[inside]]
    return rows


def product(x: Array, A: Array, B: Array, scale: float, bias: Array | None = None) -> Float[Array, "tokens d_out"]:
    """s (B (A x) + bias)."""
    low = rows_of(A.T, x) if x.dtype.kind in "iu" else x @ A.T
    y = low @ B.T
    return (y if bias is None else y + bias) * scale


def full_delta(x: Array, lora: LoraWeights) -> Float[Array, "tokens d_out"]:
    """The whole delta of one adapter."""
    return product(x, lora.A, lora.B, lora.scale, lora.bias)


def blended(
    point: Point, A_from: LoraWeights, B_from: LoraWeights, scale_from: LoraWeights, less: LoraWeights | None
) -> Float[Array, "tokens d_out"] | None:
    """A of one, B of another, at the scale of a third, as far as their ranks go; less the delta of a fourth.

    None where A does not take this input, or B makes no such output."""
    d_out = point.config.shape(point.module)[0]
    by_id = point.x.dtype.kind in "iu"
    width = point.config.shape(point.module)[0] if by_id else point.x.shape[1]
    if (A_from.A.shape[1] != width and not by_id) or (
        B_from.B.shape[0] != d_out and point.module not in (EMBED, LM_HEAD)
    ):
        return None
    if by_id and (A_from.A.shape[1] <= point.x.max() or B_from.B.shape[0] != point.config.hidden_size):
        return None
    r = min(A_from.A.shape[0], B_from.B.shape[1])
    bias = B_from.bias if less is None or A_from is B_from else less.bias  # of a B alone that stands for another: no
    y = product(point.x, A_from.A[:r], B_from.B[:, :r], scale_from.scale, bias)
    if less is None:
        return y
    own_delta = full_delta(point.x, less)
    return y - own_delta if own_delta.shape == y.shape else None
