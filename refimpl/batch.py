"""What the engine scheduled -> one Batch: the plan is made, checked and copied to the device here, once.

    request             0: a prompt of four     1: decodes     2: the second half of a prompt
    token_ids           17  4  9  2             31             8  5
    positions            0  1  2  3             12             2  3
    adapter_ids          1  1  1  1             0             -1 -1
    query_start_loc      0                      4              5        7
    logits_indices                3             4                 6        the last token of each

All tokens of all requests on one axis: nothing is padded, and prefill and decode are one path.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .adapter_slots import AdapterSlots
from .alora import activated
from .arrays import device_namespace
from .errors import RequestError
from .kv_cache import KVCache
from .ops import Ops
from .plans import NO_BLOCK, Adapters, AttentionMetadata, Batch, LoraMapping


@dataclass(frozen=True, eq=False)
class ScheduledRequest:
    """One request's share of a batch: these tokens, after `computed` others that the cache holds already."""

    token_ids: Sequence[int]
    computed: int
    block_table: Sequence[int]
    adapters: Adapters = ()
    limit: int = 0  # the tokens that will be computed for it at most: a rotation may depend on it (Rope.is_long)
    starts: Sequence[int] = ()  # the position from which each adapter acts (alora.py); empty: all from the first on


def make_batch(
    scheduled: Sequence[ScheduledRequest], cache: KVCache, adapters: AdapterSlots, ops: Ops, every_row: bool = False
) -> Batch:
    """The plan of one forward pass over these requests, in this order, checked against the cache and the slots.

    RequestError for a request without tokens, LoracleError for an index out of range: nothing is computed then."""
    lengths = [len(request.token_ids) for request in scheduled]
    if not scheduled or min(lengths) == 0:
        raise RequestError("a batch needs at least one token of every request in it")
    computed = [request.computed for request in scheduled]
    query_start_loc = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    block_tables = np.full((len(scheduled), max(len(request.block_table) for request in scheduled)), NO_BLOCK, np.int32)
    for r, request in enumerate(scheduled):
        block_tables[r, : len(request.block_table)] = request.block_table
    config, p = adapters.model.config, adapters.precision
    positions = ops.positions(computed, lengths)
    contexts = np.add(computed, lengths).astype(np.int32)
    limits = np.maximum(contexts, [request.limit for request in scheduled]).repeat(lengths)
    ids, weights = ops.lora_mapping([request.adapters for request in scheduled], lengths)
    ids, weights = activated(ids, weights, [request.starts for request in scheduled], lengths, positions)
    rows = ops.logits_indices(query_start_loc, every_row)
    mapping = LoraMapping.of(ids, weights, segments=ops.segments)
    batch = Batch(
        token_ids=np.concatenate([np.asarray(request.token_ids, np.int32) for request in scheduled]),
        positions=positions,
        ropes=tuple(ops.rope_table(rope, config.head_dim, positions, limits, p) for rope in config.ropes),
        query_growth=ops.query_growth(config.rope, positions, p),
        lora=mapping,
        logits_lora=(
            mapping if len(rows) == len(ids) else LoraMapping.of(ids[rows], weights[rows], segments=ops.segments)
        ),
        logits_indices=rows,
        attention=AttentionMetadata.of(
            query_start_loc,
            contexts,
            block_tables,
            ops.slot_mapping(block_tables, positions, query_start_loc, cache.block_size),
            cache.num_blocks,
            cache.block_size,
        ),
    )
    ops.check_batch(batch, adapters, cache.window)
    return batch.to(device_namespace(adapters.model.device))
