"""Request -> Batch: what one forward pass computes, as flat plans on the host, each checked once, here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .arrays import Array, Float, Int
from .errors import RequestError
from .kv_cache import NO_BLOCK
from .lora import NO_ADAPTER

if TYPE_CHECKING:
    from .ops import Ops

Adapters = Sequence[tuple[int, float]]  # (slot in the bank, weight) of each adapter that one request sums


@dataclass(frozen=True, eq=False)
class Batch:
    """One forward pass. Request r owns the flat tokens query_start_loc[r] to query_start_loc[r+1]."""

    token_ids: Int[Array, " tokens"]
    positions: Int[Array, " tokens"]
    slot_mapping: Int[Array, " tokens"]
    adapter_ids: Int[Array, "tokens k"]
    adapter_weights: Float[Array, "tokens k"]
    query_start_loc: Int[Array, " starts"]
    context_lens: Int[Array, " requests"]
    block_tables: Int[Array, "requests table"]
    logits_indices: Int[Array, " rows"]


@dataclass(frozen=True, eq=False)
class ScheduledRequest:
    """The share of one request in a batch: these tokens, after `computed` others that the cache holds already."""

    token_ids: Sequence[int]
    computed: int
    block_table: Sequence[int]
    adapters: Adapters = ()


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


def positions(computed: Sequence[int], lengths: Sequence[int]) -> Int[Array, " tokens"]:
    """The place of each token in its own request, counting the tokens that were computed before."""
    return np.concatenate([np.arange(c, c + n, dtype=np.int32) for c, n in zip(computed, lengths, strict=True)])


def logits_indices(query_start_loc: Int[Array, " starts"], every: bool) -> Int[Array, " rows"]:
    """The tokens that get logits: each request's last, or every one."""
    return np.arange(query_start_loc[-1], dtype=np.int32) if every else (query_start_loc[1:] - 1).astype(np.int32)


def make_batch(work: Sequence[ScheduledRequest], block_size: int, ops: "Ops", every_row: bool = False) -> Batch:
    """The plan of one forward pass over these shares, in this order."""
    lengths = [len(w.token_ids) for w in work]
    if not work or min(lengths) == 0:
        raise RequestError("a batch needs at least one token of every request in it")
    computed = [w.computed for w in work]
    query_start_loc = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    block_tables = np.full((len(work), max(len(w.block_table) for w in work)), NO_BLOCK, np.int32)
    for r, w in enumerate(work):
        block_tables[r, : len(w.block_table)] = w.block_table
    token_positions = ops.positions(computed, lengths)
    adapter_ids, adapter_weights = ops.lora_mapping([w.adapters for w in work], lengths)
    return Batch(
        token_ids=np.concatenate([np.asarray(w.token_ids, np.int32) for w in work]),
        positions=token_positions,
        slot_mapping=ops.slot_mapping(block_tables, token_positions, query_start_loc, block_size),
        adapter_ids=adapter_ids,
        adapter_weights=adapter_weights,
        query_start_loc=query_start_loc,
        context_lens=np.asarray([c + n for c, n in zip(computed, lengths, strict=True)], np.int32),
        block_tables=block_tables,
        logits_indices=ops.logits_indices(query_start_loc, every_row),
    )
