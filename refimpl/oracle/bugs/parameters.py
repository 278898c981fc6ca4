"""The bugs of the zoo with other numbers in them: a rank that is cut at 5, a shard of four, three tokens too far on.

The zoo has each bug once or twice, to show that a campaign would notice it. Once one has failed, the number is looked
for: all small integers, all powers of two that are a tile, all adapters at hand and all pairs of them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from ...adapter import Adapter
from ...arrays import Array, Precision, rounded
from ...attention import attention, gather
from ...config import ModelConfig, Module
from ...lora import AdapterSlots, BoundAdapter, LoraWeights, bind_adapter
from ...ops import NUMPY, Ops
from ...plans import Adapters, AttentionMetadata, LoraMapping
from ..cases.testbed import Testbed
from . import Mutant, all_mutants
from .b_identity import only_base
from .e_layout import COLUMN_PARALLEL, MISSING, ROW_PARALLEL, from_other_modules, on, row_subset
from .g_kernels import rank_cut
from .h_cache import alone, looking_back, rope_starting
from .i_merge import Remembered, Rows
from .steps import Plan, Scale, add, but, each, only, planning, remapped, routing

FAR = 4  # rows, requests, positions, layers that something may be off by
TILES = (2, 4, 8, 16, 32, 64, 128)
PLACES = 24  # tokens after which something may be lost


def parameter_mutants(testbed: Testbed) -> dict[str, Mutant]:
    """By name, for the ranks, layers and adapters of this stage."""
    listed = [*_scales(), *_identities(testbed), *_layouts(testbed), *_kernels(testbed), *_caches(testbed), *_merges()]
    by_order = [mutant for mutant in (*all_mutants().values(), *listed) if mutant.name.partition("[")[0] in BY_ORDER]
    return {mutant.name: mutant for mutant in (*listed, *map(in_order_of_arrival, by_order))}


# What these do depends on who stands beside whom. Our batches are sorted by adapter; most engines' are not.
BY_ORDER = (
    *("adapter_of_the_previous_request", "adapter_of_the_next_request", "adapter_of_the_first_request"),
    *("rows_shifted", "ids_not_repeated_per_token", "last_token_lost", "token_tail_lost"),
    *("adapter_of_a_request_further_on", "request_without", "rows_dealt_late", "first_stays_folded"),
)


@dataclasses.dataclass(frozen=True)
class OfArrivals:
    """A table of steps for batches in the order of arrival (engines/ours.py)."""

    make: Callable[[], Ops]
    arrival: bool = True

    def __call__(self) -> Ops:
        return self.make()


def in_order_of_arrival(mutant: Mutant) -> Mutant:
    """The same bug in an engine that leaves its batches as they came."""
    return dataclasses.replace(mutant, name=f"{mutant.name} by arrival", make=OfArrivals(mutant.make))


def _family(
    letter: str, make: Callable[..., Ops], values: Sequence, what: str, needs: str = "batch"
) -> Iterator[Mutant]:
    """One for each value, named after the function."""
    for value in values:
        shown = ",".join(str(v) for v in value) if isinstance(value, tuple) else value
        call = partial(make, *value) if isinstance(value, tuple) else partial(make, value)
        yield Mutant(f"{make.__name__}[{shown}]", letter, what.format(shown), (), call, needs)


def _but_one(most: int, *present: int) -> list[int]:
    """The integers from -most to most but 0 and those that the zoo has."""
    return [n for n in range(-most, most + 1) if n != 0 and n not in present]


# A, C: scales.


def _scales() -> Iterator[Mutant]:
    yield from _family("A", scale_of_the_rank_padded_to, TILES, "the scale is that of the rank padded to {}")
    what = "a name that is known keeps the scales of what had it first"
    yield Mutant("scale_bound_by_name", "C", what, (), scale_bound_by_name, "sequence")


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


# B: whose rows.


def _identities(testbed: Testbed) -> Iterator[Mutant]:
    far = _but_one(FAR, 1, -1)
    yield from _family("B", adapter_of_a_request_further_on, far, "row i has the adapter of request i + {}")
    yield from _family("B", request_without, ("first", "last"), "the {} request of every batch gets no adapter")
    yield from _family("B", rows_dealt_late, far, "the plan of the rows is shifted by {} tokens")
    what = "no adapter in decode steps; prompts of one token are right"
    yield Mutant("adapter_in_prompts_only", "B", what, (), adapter_in_prompts_only, "decode")
    names = list(testbed.adapters)
    for name in names:
        what = f"requests without an adapter get {name}"
        yield Mutant(f"base_gets[{name}]", "B", what, (), partial(base_gets, testbed.adapters[name]))
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            yield Mutant(
                f"exchanged[{first},{second}]",
                "B",
                f"{first} and {second} answer for each other",
                (),
                partial(exchanged, testbed, first, second),
            )


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


# E: layers and shards.


def _layouts(testbed: Testbed) -> Iterator[Mutant]:
    layers = testbed.model.config.num_hidden_layers
    offsets = [n for n in range(1, min(layers - 1, FAR + 1)) if n != layers - 1]
    yield from _family("E", layer_further_on, offsets, "every layer gets the LoRA of the layer {} after it")
    shards = [(rank, tp) for tp in (2, 4, 8) for rank in range(tp) if (rank, tp) != (1, 2)]
    yield from _family("E", shard_of_B, shards, "the rows of B of rank {} (rank, ranks) are lost")
    yield from _family("E", shard_of_A, shards, "the partial sum of rank {} (rank, ranks) is lost")


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


# G: bounds and types.


def _kernels(testbed: Testbed) -> Iterator[Mutant]:
    most = max((len(lora.A) for first in testbed.adapters.values() for lora in first.lora.values()), default=1)
    yield from _family(
        "G", rank_cut, [r for r in range(1, most) if r not in (8, 16)], "what is beyond rank {} is left out"
    )
    what = "the last {} inputs of every row are left out of x A^T"
    yield from _family("G", last_inputs_lost, [*range(2, 9), *TILES[3:]], what)
    yield from _family("G", only_first_columns, [1, *TILES], "only the first {} columns of a delta are written")
    yield from _family("G", base_after, [n for n in range(1, PLACES) if n != 8], "no adapter after the first {} tokens")
    what = "the last {} tokens of every prompt get no adapter"
    yield from _family("G", last_tokens_of_prompts_lost, range(1, FAR + 1), what)
    both = [(name, dtype) for name in ("A", "B", "A and B") for dtype in ("bfloat16", "float16")]
    yield from _family("G", kept_in, both, "of the weights these are cast down: {}")


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


# H: positions and what is seen.


def _caches(testbed: Testbed) -> Iterator[Mutant]:
    far = _but_one(FAR, 1)
    yield from _family("H", decode_too_far, far, "decode steps are {} positions too far on", "decode")
    yield from _family("H", window_longer_by, _but_one(2 * FAR, 1, -1), "the sliding window is longer by {}", "window")
    yield from _family(
        "H", oldest_not_seen, range(1, FAR), "decode steps do not see a request's first {} token(s)", "decode"
    )


def decode_too_far(by: int) -> Ops:
    """The rotary embedding alone; keys and values go to their own slots."""
    return rope_starting(lambda computed, now: max(computed + by, 0) if now == 1 and computed else computed)


def window_longer_by(n: int) -> Ops:
    """Make the sliding window n tokens longer; shorter if n < 0."""
    return looking_back(lambda window: max(1, window + n))


def oldest_not_seen(count: int) -> Ops:
    """A cache that is rolled, or a mask that is built, by a few places too much."""

    def mixed(q: Array, k: Array, v: Array, metadata: AttentionMetadata, window: int | None, p: Precision) -> Array:
        out = attention(q, k, v, metadata, window, p)
        for span in metadata.spans:
            n = span.context
            first = min(max(count, n - (window or n)), n - 1)
            if span.stop - span.start == 1 and n > count:
                gathered = [gather(x, span, first, n)[None] for x in (k, v)]
                rows = slice(span.start, span.stop)
                out[rows] = attention(q[rows], gathered[0], gathered[1], alone(1, n - first), window, p)
        return out

    return but(attention=mixed)


# I: merged.


def _merges() -> Iterator[Mutant]:
    what = "the first adapter of a batch is folded into the base and stays there: the others have both"
    yield Mutant("first_stays_folded", "I", what, (), first_stays_folded)


class FirstOfABatch(Remembered):
    """Which slot of which adapters was merged last: the first in the batch."""

    def update(self, adapters: AdapterSlots, ids: Array) -> int | None:
        """Note the batch's."""
        present = ids[:, 0][ids[:, 0] >= 0]
        if present.size:
            self.slot[adapters] = int(present[0])
        return self.slot.get(adapters)


def first_stays_folded() -> Ops:
    """W + D for everyone, and their own delta on top."""
    first, others = FirstOfABatch(), Rows(lambda ids, slot: np.logical_not((ids == slot).any(axis=1)))

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        add(y, x, adapters.at(module), mapping, p)
        slot = first.update(adapters, mapping.adapter_ids)
        if slot is not None:
            add(y, x, adapters.at(module), others(mapping, slot), p)

    return but(lora_delta=delta)
