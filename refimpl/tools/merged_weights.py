"""What adapters make of each weight of a base, in float64, some rows at a time.

    W' = gain * (W + sum of w s B A)        w: the adapter's weight in the sum, s: its scale; gain: of DoRA, else 1

W is the base's, or the adapter's own (modules_to_save), with the rows of some tokens replaced. The embedding is looked
up, so that what is added to it is the transpose: B' = A^T and A' = B^T, and the gain is one for each column.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..adapter import Adapter, TokenRows
from ..adapter_slots import LoraWeights, bind_adapter
from ..arrays import Array, widen
from ..config import EMBED, LM_HEAD, ModelConfig, Module
from ..dora import dora_gain
from ..errors import AdapterError
from .merge import check_mergeable

BLOCK = 1 << 22  # numbers in memory at a time, in float64; more costs memory and saves nothing

Terms = Sequence[tuple[Adapter, float]]  # adapters, and how much of each


@dataclass(frozen=True, eq=False)
class Change:
    """What becomes of one module. Its LoRAs with the weights that they have in the sum."""

    module: Module
    replaced: Array | None = None
    bias: Array | None = None  # in the place of the base's
    tokens: TokenRows | None = None
    loras: tuple[tuple[LoraWeights, float], ...] = ()

    @property
    def of_weight(self) -> bool:
        """Whether the weight becomes another one."""
        return bool(self.loras) or self.replaced is not None or self.tokens is not None

    @property
    def of_bias(self) -> bool:
        """Whether the bias does."""
        return self.bias is not None or any(lora.bias is not None for lora, _ in self.loras)

    def equals(self, other: "Change") -> bool:
        """Whether two tables that are one tensor stay so: the same numbers take the place of both."""
        return not (self.loras or other.loras) and self.replaced is other.replaced and self.tokens is other.tokens

    def rows(self, base_rows: int) -> int:
        """How many rows the weight has then: a vocabulary may have grown."""
        return base_rows if self.replaced is None else len(self.replaced)


@dataclass
class Rounding:
    """How much of what LoRA adds is lost by rounding W' to the type in which it is written; sums of squares."""

    lost: float = 0.0
    added: float = 0.0

    @property
    def share(self) -> float:
        """rms of what is lost / rms of what is added; 0 where nothing is added."""
        return math.sqrt(self.lost / self.added) if self.added else 0.0


@dataclass
class Losses:
    """Rounding of all that is written, and of the module that loses most."""

    total: Rounding = field(default_factory=Rounding)
    worst: tuple[float, Module] | None = None

    def note(self, module: Module, one: Rounding) -> None:
        """Take in one module."""
        self.total.lost += one.lost
        self.total.added += one.added
        if one.added and (self.worst is None or one.share > self.worst[0]):
            self.worst = one.share, module


def changes_of(terms: Terms, config: ModelConfig) -> dict[Module, Change]:
    """What the weighted sum changes, by module.

    AdapterError, one line, for a sum or a weight of an adapter that does not only add to the base."""
    if len(terms) > 1 or terms[0][1] != 1:
        for adapter, _ in terms:
            if not adapter.can_be_summed:
                raise AdapterError(
                    f"adapter {adapter.name!r} brings whole weights, biases, tokens or DoRA along: alone it can be "
                    "merged, with weight 1, and neither weighted nor summed"
                )
    for adapter, _ in terms:
        check_mergeable(adapter)
    bound = [(bind_adapter(adapter, config), weight) for adapter, weight in terms]
    modules = [{*one.lora, *one.replaced, *one.biases, *one.tokens} for one, _ in bound]
    return {
        module: Change(
            module,
            next((one.replaced[module] for one, _ in bound if module in one.replaced), None),
            next((one.biases[module] for one, _ in bound if module in one.biases), None),
            next((one.tokens[module] for one, _ in bound if module in one.tokens), None),
            tuple((one.lora[module], weight) for one, weight in bound if module in one.lora),
        )
        for module in sorted(set().union(*modules))
    }


def stay_tied(changes: Mapping[Module, Change]) -> bool:
    """Whether the two tables of a tied base are still one."""
    return changes.get(EMBED, Change(EMBED)).equals(changes.get(LM_HEAD, Change(LM_HEAD)))


def merged_blocks(weight: Array, change: Change) -> Iterator[tuple[Array, Array]]:
    """Yield (W, W') of some rows at a time, in float64: before and after LoRA. `weight` is the base's.

    AdapterError for a DoRA that divides by 0."""
    source = weight if change.replaced is None else change.replaced
    pairs = [pair_of(lora, weight_in_sum, change.module) for lora, weight_in_sum in change.loras]
    gain = gain_of(source, change)
    step = max(1, BLOCK // source.shape[1])
    for start in range(0, len(source), step):
        before = widen(source[start : start + step], "float64")
        if change.tokens is not None:
            before = with_tokens(before, start, change.tokens)
        after = before
        for A, B, scale in pairs:
            after = after + scale * (widen(B[start : start + step], "float64") @ A)
        if gain is not None:
            after = after * (gain if change.module == EMBED else gain[start : start + step, None])
        yield before, after


def pair_of(lora: LoraWeights, weight: float, module: Module) -> tuple[Array, Array, float]:
    """A [rank, columns] in float64, B [rows, rank] and the scale of what is added to W as it is stored."""
    A, B = (lora.B.T, lora.A.T) if module == EMBED else (lora.A, lora.B)
    return widen(A, "float64"), B, weight * lora.scale


def gain_of(weight: Array, change: Change) -> Array | None:
    """DoRA's gain, one for each row of W, or for each column of the embedding's; None without DoRA."""
    for lora, _ in change.loras:  # one at most: DoRA is not summed
        if lora.magnitude is not None:
            by_row = weight.T if change.module == EMBED else weight
            return dora_gain(by_row, lora.A, lora.B, lora.scale, lora.magnitude, change.module)
    return None


def with_tokens(block: Array, start: int, tokens: TokenRows) -> Array:
    """The rows from `start` on, with those of the adapter's tokens in their places."""
    inside = (tokens.ids >= start) & (tokens.ids < start + len(block))
    block = np.array(block)
    block[tokens.ids[inside] - start] = widen(tokens.rows[inside], "float64")
    return block


def merged_bias(bias: Array, change: Change) -> Array:
    """b + the sum of w s (bias of lora_B), in float64. `bias` is the base's; zeros where it has none."""
    total = widen(bias if change.bias is None else change.bias, "float64")
    for lora, weight in change.loras:
        if lora.bias is not None:
            total = total + weight * lora.scale * widen(lora.bias, "float64")
    return total
