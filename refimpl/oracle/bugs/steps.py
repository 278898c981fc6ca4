"""What the bugs have in common: NUMPY with a step replaced, and the few ways in which a step goes wrong.

Some bugs read past the end of a table: a token of a grown vocabulary meets the embedding of another adapter. A GPU
returns whatever lies there. Here the table's last row answers, so that every mutant gives numbers for every batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...adapter import Adapter
from ...adapter_slots import AdapterSlots, BoundAdapter, LoraWeights, bind_adapter
from ...arrays import Array, Precision
from ...config import EMBED, ModelConfig, Module
from ...dora import Dora
from ...layers import embed
from ...lora import lora_delta
from ...ops import NUMPY, Ops
from ...plans import NO_ADAPTER, Adapters, Batch, LoraMapping

Slots = Mapping[int, LoraWeights]
Scale = Callable[[float, int, bool], float]  # alpha, r, use_rslora
Plan = tuple[Array, Array]  # adapter_ids, adapter_weights


def but(**steps: Any) -> Ops:
    """NUMPY with these steps replaced. (The two that may read past an end are the same as NUMPY's where none does.)

    An engine that has the bug does not check for it, so that the batch is not checked either."""
    changed = {"embed": embed_within, "lora_delta": reading(loaded), "check_batch": unchecked} | steps
    return dataclasses.replace(NUMPY, **changed)


def unchecked(batch: Batch, adapters: AdapterSlots, window: int | None) -> None:
    """Accept any plan."""


def embed_within(table: Array, token_ids: Array, p: Precision) -> Array:
    """embed, where an id beyond the table reads its last row."""
    return embed(table, np.minimum(token_ids, len(table) - 1), p)


# What a kernel reads instead of what was loaded.


class Fixed(AdapterSlots):
    """Slots that hold these weights, in whichever module they are asked for."""

    def __init__(self, weights: Slots) -> None:
        self.weights = weights

    def at(self, module: Module) -> Slots:
        return self.weights


def add(y: Array, x: Array, weights: Slots, mapping: LoraMapping, p: Precision) -> None:
    """lora_delta with these weights, cut to the width of y."""
    present = {slot: within(weights[slot], x, y) for slot in mapping.slots if slot in weights}
    lora_delta(y, x, EMBED, Fixed(present), mapping, p)


def within(lora: LoraWeights, x: Array, y: Array) -> LoraWeights:
    """The same weights where they fit; else B without the rows that y has no room for, and A's last column repeated
    for the token ids that it does not know."""
    A, B, bias, dora = lora.A, lora.B, lora.bias, lora.dora
    too_wide = len(B) > y.shape[1]
    beyond = x.dtype.kind in "iu" and x.size > 0 and x.max() >= A.shape[1]
    if not (too_wide or beyond):
        return lora
    if too_wide:
        B, bias = B[: y.shape[1]], None if bias is None else bias[: y.shape[1]]
        dora = None if dora is None else Dora(dora.gain[: y.shape[1]], None)  # the lm_head: it has no bias
    if beyond:
        A = A[:, np.minimum(np.arange(x.max() + 1), A.shape[1] - 1)]
    return dataclasses.replace(lora, A=A, B=B, bias=bias, dora=dora)


def loaded(adapters: AdapterSlots, module: Module) -> Slots:
    """Return what was loaded: no bug."""
    return adapters.at(module)


def reading(reads: Callable[[AdapterSlots, Module], Slots]) -> Callable[..., None]:
    """lora_delta over what `reads` returns instead of what was loaded."""

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        add(y, x, reads(adapters, module), mapping, p)

    return delta


def each(change: Callable[[LoraWeights], LoraWeights]) -> Ops:
    """The same change to the weights of every slot, at every module, as the kernel reads them."""
    changed = functools.cache(change)  # a slot's weights are the same object from step to step
    reads = lambda adapters, module: {slot: changed(lora) for slot, lora in adapters.at(module).items()}  # noqa: E731
    return but(lora_delta=reading(reads))


def same_rank(lora: LoraWeights, r: int) -> LoraWeights:
    """The first r rows of A and columns of B; everything else as it was."""
    return dataclasses.replace(lora, A=lora.A[:r], B=lora.B[:, :r])


# Which rows get which adapter.


class OncePerBatch:
    """A change to a batch's plan, made when a batch is first met: all of its modules and layers share the plan."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change, self.last = change, (None, None)

    def __call__(self, plan: Any) -> Any:
        """The changed plan."""
        if self.last[0] is not plan:
            self.last = (plan, self.change(plan))
        return self.last[1]


def remapped(change: Callable[[Array, Array], Plan]) -> Callable[[LoraMapping], LoraMapping]:
    """The mapping of change(adapter_ids, adapter_weights) [tokens, k]."""
    return OncePerBatch(lambda mapping: LoraMapping.of(*change(mapping.adapter_ids, mapping.adapter_weights)))


def routing(change: Callable[[Array, Array], Plan], only_at: Module | None = None) -> Callable[..., None]:
    """lora_delta with another mapping than the batch's, in every module or in one."""
    changed = remapped(change)

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        add(y, x, adapters.at(module), changed(mapping) if only_at in (None, module) else mapping, p)

    return delta


def planning(change: Callable[[list[Adapters]], Sequence[Adapters]]) -> Ops:
    """The plan of a batch is made from other lists of (slot, weight) per request than it should be."""
    return but(lora_mapping=lambda per_request, lengths: NUMPY.lora_mapping(change(list(per_request)), lengths))


def only(keep: Array, ids: Array) -> Array:
    """The ids where `keep` holds, no adapter elsewhere."""
    return np.where(keep, ids, NO_ADAPTER).astype(np.int32)


# What an adapter becomes when it is bound to a model.


def binding(change: Callable[[BoundAdapter, Adapter, ModelConfig], BoundAdapter]) -> Ops:
    """Every adapter is changed once it is bound."""
    return but(
        bind_adapter=lambda adapter, config, scale: change(bind_adapter(adapter, config, scale), adapter, config)
    )


def loading(change: Callable[[Module, LoraWeights, ModelConfig], LoraWeights | None]) -> Ops:
    """The LoRA of every module is changed when it is loaded; None: it is not loaded at all."""

    def changed(bound: BoundAdapter, adapter: Adapter, config: ModelConfig) -> BoundAdapter:
        after = {module: change(module, lora, config) for module, lora in bound.lora.items()}
        return dataclasses.replace(bound, lora={module: lora for module, lora in after.items() if lora is not None})

    return binding(changed)


def rescaling(factor: Callable[[Module, LoraWeights, Adapter], float]) -> Ops:
    """The scale of every module times a factor."""

    def changed(bound: BoundAdapter, adapter: Adapter, config: ModelConfig) -> BoundAdapter:
        adapted = {
            module: dataclasses.replace(lora, scale=lora.scale * factor(module, lora, adapter))
            for module, lora in bound.lora.items()
        }
        return dataclasses.replace(bound, lora=adapted)

    return binding(changed)
