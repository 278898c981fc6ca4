"""The bugs that take a number or a name; parameters.py says which: a shard of four, three tokens too far on."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ...adapter import Adapter
from ...adapter_slots import AdapterSlots, BoundAdapter, LoraWeights, bind_adapter
from ...arrays import Array, Precision, rounded
from ...attention import attention, gather
from ...config import ModelConfig, Module, View
from ...ops import NUMPY, Ops
from ...plans import Adapters, AttentionMetadata, LoraMapping
from ..cases.testbed import Testbed
from .b_identity import only_base
from .e_layout import COLUMN_PARALLEL, MISSING, ROW_PARALLEL, from_other_modules, on, row_subset
from .h_cache import alone, looking_back, rope_starting
from .i_merge import Remembered, Rows
from .steps import Plan, Scale, add, but, each, only, planning, remapped, routing


def scale_of_the_rank_padded_to(tile: int) -> Ops:
    """Ranks below a kernel's least one are padded with zeros, and alpha is divided by what came of it."""

    def padded(bound: BoundAdapter) -> BoundAdapter:
        lora = {
            module: dataclasses.replace(lora, scale=lora.scale * len(lora.A) / max(len(lora.A), tile))
            for module, lora in bound.lora.items()
        }
        return dataclasses.replace(bound, lora=lora)

    return but(bind_adapter=lambda adapter, config, scale: padded(bind_adapter(adapter, config, scale)))


def scale_bound_by_name() -> Ops:
    """Only the scale is kept: the weights are the new ones."""
    scales: dict[tuple[str, Module], float] = {}

    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        bound = bind_adapter(adapter, config, scale)
        kept = {
            module: dataclasses.replace(lora, scale=scales.setdefault((adapter.name, module), lora.scale))
            for module, lora in bound.lora.items()
        }
        return dataclasses.replace(bound, lora=kept)

    return but(bind_adapter=bind)


def adapter_of_a_request_further_on(by: int) -> Ops:
    """The list of the requests' adapters is rotated."""
    return planning(lambda requests: [requests[(i + by) % len(requests)] for i in range(len(requests))])


def request_without(which: str) -> Ops:
    """The first or the last of the batch."""
    index = 0 if which == "first" else -1

    def change(requests: list[Adapters]) -> list[Adapters]:
        requests[index] = ()
        return requests

    return planning(change)


def rows_dealt_late(by: int) -> Ops:
    """The same as the zoo's rows_shifted."""
    return but(lora_delta=routing(lambda ids, weights: (np.roll(ids, by, axis=0), np.roll(weights, by, axis=0))))


def adapter_in_prompts_only() -> Ops:
    """The zoo's adapter_not_in_the_decode_graph takes the graph for every single token."""

    def keep(positions: Array, computed: Sequence[int], lengths: Sequence[int]) -> Array:
        prompts = [n > 1 or before == 0 for before, n in zip(computed, lengths, strict=True)]
        return np.repeat(np.array(prompts, bool), lengths)

    return by_place(keep)


def base_gets(adapter: Adapter) -> Ops:
    """Rows without an adapter get this one, whether it is in the batch or not."""
    slots_of: dict[AdapterSlots, AdapterSlots] = {}

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        if adapters not in slots_of:
            slots_of[adapters] = AdapterSlots(adapters.model, adapters.precision)
            slots_of[adapters].put(0, bind_adapter(adapter, adapters.model.config))
        NUMPY.lora_delta(y, x, module, adapters, mapping, p)
        add(y, x, slots_of[adapters].at(module), base_rows(mapping), p)

    base_rows = remapped(lambda ids, weights: (np.where(only_base(ids), 0, -1), np.ones(ids.shape)))

    return but(lora_delta=delta)


def exchanged(testbed: Testbed, first: str, second: str) -> Ops:
    """Each of two adapters has the other one's weights, whatever name it was loaded under."""
    other = {first: second, second: first}
    instead = {
        id(slots_of[key].lora): slots_of[other[key]] for key in other for slots_of in (testbed.adapters, testbed.wide)
    }

    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        return bind_adapter(instead.get(id(adapter.lora), adapter), config, scale)

    return but(bind_adapter=bind)


def layer_further_on(by: int) -> Ops:
    """The last layers get those of the first."""
    return from_other_modules(
        lambda module, layers: module if module[0] < 0 else ((module[0] + by) % layers, module[1])
    )


def shard_of_B(rank: int, tp: int) -> Ops:
    """Column-parallel modules: the rows of one rank of `tp`."""

    def lost(lora: LoraWeights) -> LoraWeights:
        rows = np.arange(len(lora.B))
        rows[np.array_split(np.arange(len(lora.B)), tp)[rank]] = MISSING
        return row_subset(lora, rows)

    return on(COLUMN_PARALLEL, lost)


def shard_of_A(rank: int, tp: int) -> Ops:
    """Row-parallel modules: the inputs of one rank of `tp`."""

    def lost(lora: LoraWeights) -> LoraWeights:
        A = lora.A.copy()
        A[:, np.array_split(np.arange(A.shape[1]), tp)[rank]] = 0
        return dataclasses.replace(lora, A=A)

    return on(ROW_PARALLEL, lost)


def last_inputs_lost(count: int) -> Ops:
    """A tile that ends too early."""

    def cut(lora: LoraWeights) -> LoraWeights:
        A = lora.A.copy()
        A[:, -count:] = 0
        return dataclasses.replace(lora, A=A)

    return each(cut)


def only_first_columns(count: int) -> Ops:
    """The rest of B, and of its bias, is not written."""
    return each(
        lambda lora: row_subset(lora, np.where(np.arange(len(lora.B)) < count, np.arange(len(lora.B)), MISSING))
    )


def kept_in(which: str, dtype: str) -> Ops:
    """A, B or both are rounded when they are loaded."""

    def cast(lora: LoraWeights) -> LoraWeights:
        A = rounded(lora.A, dtype) if "A" in which else lora.A
        return dataclasses.replace(lora, A=A, B=rounded(lora.B, dtype) if "B" in which else lora.B)

    return each(cast)


def by_place(keep: Callable[[Array, Sequence[int], Sequence[int]], Array]) -> Ops:
    """No adapter but where keep(positions, tokens computed before, tokens now) holds, row by row."""
    step: list = []

    def positions(computed: Sequence[int], lengths: Sequence[int]) -> Array:
        step[:] = [NUMPY.positions(computed, lengths), computed, lengths]
        return step[0]

    def rows(per_request: Sequence[Adapters], lengths: Sequence[int]) -> Plan:
        ids, weights = NUMPY.lora_mapping(per_request, lengths)
        kept = keep(*step) if step and len(step[0]) == len(ids) else np.ones(len(ids), bool)
        return only(kept[:, None], ids), weights

    return but(positions=positions, lora_mapping=rows)


def base_after(count: int) -> Ops:
    """Of each request's tokens, the prompt's and the produced ones."""
    return by_place(lambda positions, computed, lengths: positions < count)


def last_tokens_of_prompts_lost(count: int) -> Ops:
    """Decode steps are right."""

    def keep(positions: Array, computed: Sequence[int], lengths: Sequence[int]) -> Array:
        prompts = [before == 0 for before in computed]
        return np.concatenate([np.arange(n) < n - count * first for first, n in zip(prompts, lengths, strict=True)])

    return by_place(keep)


def decode_too_far(by: int) -> Ops:
    """The rotary embedding alone; keys and values go to their own slots."""
    return rope_starting(lambda computed, now: max(computed + by, 0) if now == 1 and computed else computed)


def window_longer_by(n: int) -> Ops:
    """Make the sliding window n tokens longer; shorter if n < 0."""
    return looking_back(lambda window: max(1, window + n))


def oldest_not_seen(count: int) -> Ops:
    """A cache that is rolled, or a mask that is built, by a few places too much."""

    def mixed(q: Array, k: Array, v: Array, metadata: AttentionMetadata, view: View, p: Precision) -> Array:
        out = attention(q, k, v, metadata, view, p)
        for span in metadata.spans:
            n = span.context
            first = min(max(count, n - (view.window or n)), n - 1)
            if span.stop - span.start == 1 and n > count:
                gathered = [gather(x, span, first, n)[None] for x in (k, v)]
                rows = slice(span.start, span.stop)
                out[rows] = attention(q[rows], gathered[0], gathered[1], alone(1, n - first), view, p)
        return out

    return but(attention=mixed)


class FirstOfABatch(Remembered):
    """Which slot of which adapters was merged last: the first in the batch."""

    def update(self, adapters: AdapterSlots, ids: Array) -> int | None:
        """Note the batch's."""
        present = ids[:, 0][ids[:, 0] >= 0]
        if present.size:
            self.slot[adapters] = int(present[0])
        return self.slot.get(adapters)


def first_stays_merged() -> Ops:
    """W + D for everyone, and their own delta on top."""
    first, others = FirstOfABatch(), Rows(lambda ids, slot: np.logical_not((ids == slot).any(axis=1)))

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        add(y, x, adapters.at(module), mapping, p)
        slot = first.update(adapters, mapping.adapter_ids)
        if slot is not None:
            add(y, x, adapters.at(module), others(mapping, slot), p)

    return but(lora_delta=delta)
