"""The plan of one batch: all that the forward pass looks up, made once on the host and copied to the device once.

    LoraMapping         which adapters each row gets, row by row and sorted: segments for the fast form, tiles for SGMV
    AttentionMetadata   where keys and values lie: block tables, KV slots, and which blocks are side by side
    Batch               both, with the tokens and the cos and sin of their positions

The names are vLLM's. Plans are NumPy arrays on the host, where they are checked (checks.py); `plan.device` is the same
plan where the numbers live, all of its arrays in one transfer, and the plan itself on a CPU.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arrays import Array, Float, Int, namespace
from .plan_copy import on_device

NO_ADAPTER = -1  # in adapter_ids: the base alone
NO_BLOCK = -1  # in a block table: a block that has left the sliding window
# Rows of one adapter that a kernel multiplies at a time (SGMV, segmented gather matrix-vector product: Punica, Chen et
# al. 2023). As many as a tensor core's tile has; with more, an adapter of few tokens leaves more of its tile empty.
TILE = 16

Adapters = Sequence[tuple[int, float]]  # (adapter slot, weight) of each adapter that one request sums
Index = slice | Array  # rows of an array: a slice where they lie together, so that indexing is a view
Segments = Callable[[Array, int], tuple[Array, Array]]  # a form of `segments`, below

HOST = {"host": True}  # a field that only the host reads: it is not copied


@dataclass(frozen=True, eq=False)
class Segment:
    """The rows that get one adapter at one weight."""

    slot: int
    weight: float
    rows: Index
    place: slice  # which of LoraColumn.rows these are


@dataclass(frozen=True, eq=False)
class LoraColumn:
    """The j-th adapter of every row: a row has several where its request sums several."""

    adapter_ids: Int[Array, " tokens"]
    adapter_weights: Float[Array, " tokens"]  # float32, as the kernels read them
    segments: tuple[Segment, ...]  # by slot, then by weight
    rows: Index  # those of all segments, one after another
    sorted_rows: Int[Array, " rows"]  # the rows that have an adapter, sorted by it; stable
    tile_starts: Int[Array, " edges"]  # sorted_rows in tiles of at most TILE rows of one adapter
    adapters: int  # how many different ones


@dataclass(frozen=True, eq=False)
class LoraMapping:
    """Which adapters each row gets, and at which weight. Rows are the tokens, or those of them that get logits."""

    adapter_ids: Int[Array, "tokens k"] = field(metadata=HOST)
    adapter_weights: Float[Array, "tokens k"] = field(metadata=HOST)
    columns: tuple[LoraColumn, ...]
    slots: frozenset[int]  # those that some row uses
    device: "LoraMapping" = None  # type: ignore[assignment]  # itself on a CPU
    _others: dict[frozenset[int], Index] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.device is None:
            object.__setattr__(self, "device", self)

    @classmethod
    def of(
        cls,
        adapter_ids: Int[Array, "tokens k"],
        adapter_weights: Float[Array, "tokens k"],
        xp: Any = np,
        segments: Segments | None = None,
    ) -> "LoraMapping":
        """The mapping with these ids (NO_ADAPTER: none) and weights; its device copy lives in `xp`."""
        columns = tuple(
            lora_column(ids, weights, segments) for ids, weights in zip(adapter_ids.T, adapter_weights.T, strict=True)
        )
        slots = frozenset(segment.slot for column in columns for segment in column.segments)
        mapping = cls(adapter_ids, adapter_weights, columns, slots)
        return mapping if xp is np else dataclasses.replace(mapping, device=on_device(mapping, xp))

    def of_rows(
        self, rows: Int[Array, " rows"], form: Segments | None = None, among: Collection[int] | None = None
    ) -> "LoraMapping":
        """The mapping of these rows alone, which are counted anew: what an expert sees of the batch. Rows: on the
        host. among: the slots that have something there, if that is known: without them there is nothing to count."""
        ids, weights = self.adapter_ids[rows], self.adapter_weights[rows]
        if not self.slots or (among is not None and self.slots.isdisjoint(among)):
            return LoraMapping(ids, weights, (), frozenset())
        return LoraMapping.of(ids, weights, namespace(self.device.columns[0].adapter_ids), form)

    def rows_without(self, slots: frozenset[int]) -> Index:
        """The rows whose first adapter is none of these, as an index on the device. Copied there once."""
        if slots not in self._others:
            rows = index_of(np.flatnonzero(~np.isin(self.adapter_ids[:, 0], list(slots))).tolist())
            here = isinstance(rows, slice) or self.device is self
            self._others[slots] = rows if here else namespace(self.device.columns[0].adapter_ids).asarray(rows)
        return self._others[slots]


def lora_column(
    adapter_ids: Int[Array, " tokens"], adapter_weights: Float[Array, " tokens"], form: Segments | None = None
) -> LoraColumn:
    """One column of a mapping, with its tiles and its segments. A tile is of the adapter of its first row."""
    ids = np.ascontiguousarray(adapter_ids, np.int32)
    sorted_rows, tile_starts = (form or segments)(ids, TILE)
    slots, weights, rows = ids.tolist(), adapter_weights.tolist(), sorted_rows.tolist()
    rows_of: dict[tuple[int, float], list[int]] = {}
    for start, stop in itertools.pairwise(tile_starts.tolist()):
        for t in rows[start:stop]:
            rows_of.setdefault((slots[rows[start]], weights[t]), []).append(t)
    groups = sorted(rows_of.items())
    stops = itertools.accumulate(len(group) for _, group in groups)
    return LoraColumn(
        ids,
        adapter_weights.astype(np.float32),
        tuple(
            Segment(*which, index_of(group), slice(stop - len(group), stop))
            for (which, group), stop in zip(groups, stops, strict=True)
        ),
        index_of([t for _, group in groups for t in group]),
        sorted_rows,
        tile_starts,
        len({slot for slot, _ in rows_of}),
    )


def index_of(rows: Sequence[int]) -> Index:
    """These rows, or blocks, as an index: a slice if each is the one before plus 1, or there are none."""
    side_by_side = range(rows[0], rows[0] + len(rows)) if rows else range(0)
    return slice(side_by_side.start, side_by_side.stop) if [*rows] == [*side_by_side] else np.asarray(rows, np.int32)


@dataclass(frozen=True, eq=False)
class Span:
    """One request in the batch: its tokens are rows start to stop, the last of `context` tokens in its blocks.

    `blocks` indexes the blocks from the `first` one on that is still there: a slice if they lie side by side."""

    start: int
    stop: int
    context: int
    first: int
    blocks: Index


@dataclass(frozen=True, eq=False)
class AttentionMetadata:
    """Where the keys and values of a batch lie, in a cache of num_blocks blocks of block_size tokens."""

    query_start_loc: Int[Array, " starts"]  # request r owns tokens query_start_loc[r] to query_start_loc[r + 1]
    context_lens: Int[Array, " requests"]  # tokens of the request in the cache, the new ones included
    block_tables: Int[Array, "requests max_blocks"]
    slot_mapping: Int[Array, " tokens"]  # the KV slot of each token: block * block_size + offset
    requests: Int[Array, " tokens"]  # whose token it is
    spans: tuple[Span, ...]
    num_blocks: int
    block_size: int
    device: "AttentionMetadata" = None  # type: ignore[assignment]  # itself on a CPU
    _stacks: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # tiles.stacks_of

    def __post_init__(self) -> None:
        if self.device is None:
            object.__setattr__(self, "device", self)

    @classmethod
    def of(
        cls,
        query_start_loc: Int[Array, " starts"],
        context_lens: Int[Array, " requests"],
        block_tables: Int[Array, "requests max_blocks"],
        slot_mapping: Int[Array, " tokens"],
        num_blocks: int,
        block_size: int,
        xp: Any = np,
    ) -> "AttentionMetadata":
        """The metadata of these tables; its device copy lives in `xp`. Nothing is checked here (checks.py does)."""
        tables = np.ascontiguousarray(block_tables, np.int32)
        starts, contexts = query_start_loc.tolist(), context_lens.tolist()
        spans = tuple(
            Span(start, stop, context, *blocks_of(table[: -(-context // block_size)]))
            for start, stop, context, table in zip(starts, starts[1:], contexts, tables.tolist(), strict=False)
        )
        requests = np.arange(len(contexts), dtype=np.int32).repeat(query_start_loc[1:] - query_start_loc[:-1])
        metadata = cls(query_start_loc, context_lens, tables, slot_mapping, requests, spans, num_blocks, block_size)
        return metadata if xp is np else dataclasses.replace(metadata, device=on_device(metadata, xp))


def blocks_of(table: Sequence[int]) -> tuple[int, Index]:
    """(first block that is still there, index of it and all after it)."""
    first = next((j for j, block in enumerate(table) if block != NO_BLOCK), 0)
    return first, index_of(list(table[first:]))


@dataclass(frozen=True, eq=False)
class Batch:
    """One forward pass over all scheduled tokens of all requests."""

    token_ids: Int[Array, " tokens"]
    positions: Int[Array, " tokens"]  # of each token in its own request
    # cos and sin of these positions, for each rotation that the model's layers use (ModelConfig.ropes)
    ropes: tuple[tuple[Float[Array, "tokens half"], Float[Array, "tokens half"]], ...]
    query_growth: Float[Array, "tokens 1 1"] | float  # of these positions (rope.query_growth)
    lora: LoraMapping  # of the tokens
    logits_lora: LoraMapping  # of the tokens that get logits
    logits_indices: Int[Array, " rows"]  # which these are
    attention: AttentionMetadata
    device: "Batch" = None  # type: ignore[assignment]  # itself on a CPU

    def __post_init__(self) -> None:
        if self.device is None:
            object.__setattr__(self, "device", self)

    def to(self, xp: Any) -> "Batch":
        """The same batch with its device copy in `xp`: one transfer for all of its arrays."""
        if xp is np:
            return self
        copy = on_device(self, xp)
        return dataclasses.replace(
            self,
            lora=dataclasses.replace(self.lora, device=copy.lora),
            logits_lora=dataclasses.replace(self.logits_lora, device=copy.logits_lora),
            attention=dataclasses.replace(self.attention, device=copy.attention),
            device=copy,
        )


# ---- steps that make a plan: fields of Ops --------------------------------------------------------------------------


def lora_mapping(
    per_request: Sequence[Adapters], lengths: Sequence[int]
) -> tuple[Int[Array, "tokens k"], Float[Array, "tokens k"]]:
    """Which adapters, at which weight, each token gets: its request's, in the request's order, then -1 and 0."""
    k = max(1, *(len(adapters) for adapters in per_request))
    ids = np.full((len(lengths), k), NO_ADAPTER, np.int32)
    weights = np.zeros((len(lengths), k))
    for r, adapters in enumerate(per_request):
        for j, (slot, weight) in enumerate(adapters):
            ids[r, j], weights[r, j] = slot, weight
    return ids.repeat(lengths, axis=0), weights.repeat(lengths, axis=0)


def segments_per_adapter(
    adapter_ids: Int[Array, " tokens"], size: int
) -> tuple[Int[Array, " rows"], Int[Array, " edges"]]:
    """Return the rows that have an adapter, sorted by it, and where each tile of them starts, then their number.

    The rows of one adapter are a segment. It is cut in tiles of at most `size` rows: what one block of an SGMV kernel
    multiplies, so that it reads the adapter once for all of them.

        adapter_ids [2, 2, -1, 0, 2], size 2  ->  rows [3, 0, 1, 4], starts [0, 1, 3, 4]: 3 | 0 1 | 4"""
    rows: list[int] = []
    starts = [0]
    for slot in sorted(set(adapter_ids.tolist()) - {NO_ADAPTER}):
        rows += [t for t, other in enumerate(adapter_ids.tolist()) if other == slot]
        starts += [*range(starts[-1] + size, len(rows), size), len(rows)]
    return np.asarray(rows, np.int32), np.asarray(starts, np.int32)


def segments(adapter_ids: Int[Array, " tokens"], size: int) -> tuple[Int[Array, " rows"], Int[Array, " edges"]]:
    """The same, in one pass over the tokens."""
    rows_of: dict[int, list[int]] = {}
    for t, slot in enumerate(adapter_ids.tolist()):
        rows_of.setdefault(slot, []).append(t)
    rows: list[int] = []
    starts = [0]
    for slot in sorted(rows_of.keys() - {NO_ADAPTER}):
        rows += rows_of[slot]
        starts += [*range(starts[-1] + size, len(rows), size), len(rows)]
    return np.asarray(rows, np.int32), np.asarray(starts, np.int32)


def positions(computed: Sequence[int], lengths: Sequence[int]) -> Int[Array, " tokens"]:
    """The position of each token in its own request, counting the tokens that were computed before."""
    return np.concatenate([np.arange(i, i + n, dtype=np.int32) for i, n in zip(computed, lengths, strict=True)])


def slot_mapping(
    block_tables: Int[Array, "requests max_blocks"],
    positions: Int[Array, " tokens"],
    query_start_loc: Int[Array, " starts"],
    block_size: int,
) -> Int[Array, " tokens"]:
    """Where each token's key and value go: block * block_size + offset, through its request's block table."""
    request = np.arange(len(query_start_loc) - 1).repeat(query_start_loc[1:] - query_start_loc[:-1])
    block = block_tables[request, positions // block_size]
    return (block * block_size + positions % block_size).astype(np.int32)


def logits_indices(query_start_loc: Int[Array, " starts"], every: bool) -> Int[Array, " rows"]:
    """The tokens that get logits: each request's last, or every one."""
    return np.arange(query_start_loc[-1], dtype=np.int32) if every else (query_start_loc[1:] - 1).astype(np.int32)
