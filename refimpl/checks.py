"""Everything that could be wrong with a plan, said once, on the host, before anything is computed.

A GPU checks nothing: an adapter id out of range is another tenant's weights, a slot out of range another request's
past. Each check is a LoracleError of one line that names the request or the token.
"""

import numpy as np

from .adapter_slots import AdapterSlots
from .arrays import Array, Int
from .config import EMBED
from .errors import LoracleError
from .plans import NO_ADAPTER, AttentionMetadata, Batch


def check_batch(batch: Batch, adapters: AdapterSlots, window: int | None) -> None:
    """LoracleError unless every index of the batch is inside of what it indexes."""
    check_adapter_ids(batch.lora.adapter_ids, adapters.slots)
    check_token_ids(batch, adapters)
    check_attention(batch.attention, len(batch.token_ids), window)
    check_slots(batch.attention)


def check_adapter_ids(adapter_ids: Int[Array, "tokens k"], slots: set[int]) -> None:
    """Every id is NO_ADAPTER or a slot that holds an adapter."""
    unknown = set(adapter_ids.ravel().tolist()) - slots - {NO_ADAPTER}
    if unknown:
        t = int(np.flatnonzero((adapter_ids == min(unknown)).any(axis=1))[0])
        raise LoracleError(
            f"adapter id {min(unknown)} of token {t} is out of range: the slots in use are {sorted(slots)}"
        )


def check_token_ids(batch: Batch, adapters: AdapterSlots) -> None:
    """Every token id is a row of the embedding that its request uses: the base's, or one that its adapter brings."""
    rows = np.full(len(batch.token_ids), adapters.model.config.vocab_size)
    for slot, table in adapters.base_at(EMBED).items():
        rows[batch.lora.adapter_ids[:, 0] == slot] = len(table.weight)
    wrong = np.flatnonzero((batch.token_ids < 0) | (batch.token_ids >= rows))
    if wrong.size:
        t = int(wrong[0])
        raise LoracleError(
            f"token id {batch.token_ids[t]} of token {t} is out of range: its embedding has {rows[t]} rows"
        )


def check_attention(metadata: AttentionMetadata, tokens: int, window: int | None) -> None:
    """Every key that a token sees is in a block of its request that exists."""
    starts, contexts, tables = metadata.query_start_loc, metadata.context_lens, metadata.block_tables
    for name, x, shape in (
        ("query_start_loc", starts, (len(contexts) + 1,)),
        ("context_lens", contexts, (len(starts) - 1,)),
        ("block_tables", tables, (len(contexts), *tables.shape[-1:])),
    ):
        if not isinstance(x, np.ndarray) or x.dtype != np.int32 or x.shape != shape:
            raise LoracleError(f"{name} must be int32 of shape {shape} on the host, not {x.dtype} of shape {x.shape}")
    if window is not None and window < 1:
        raise LoracleError(f"window {window}: a token sees at least itself")
    counts, block_size = np.diff(starts), metadata.block_size
    if starts[0] != 0 or starts[-1] != tokens or (counts < 0).any():
        raise LoracleError(f"query_start_loc must rise from 0 to the {tokens} tokens, not {starts.tolist()}")
    for r, (n, context) in enumerate(zip(counts.tolist(), contexts.tolist(), strict=True)):
        if context < n:
            raise LoracleError(f"request {r}: {n} new tokens in a context of {context}")
        if n == 0:
            continue
        needed = -(-context // block_size)
        if needed > tables.shape[1]:
            raise LoracleError(
                f"request {r}: {context} tokens need {needed} blocks of {block_size}; its block table has "
                f"{tables.shape[1]}"
            )
        first = 0 if window is None else max(0, context - n - window + 1)
        visible = tables[r, first // block_size : needed]
        wrong = visible[(visible < 0) | (visible >= metadata.num_blocks)]
        if wrong.size:
            raise LoracleError(
                f"request {r}: its block table names block {wrong[0]}; the cache has {metadata.num_blocks}"
            )


def check_slots(metadata: AttentionMetadata) -> None:
    """Each token has a KV slot of its own inside the cache."""
    slots, capacity = metadata.slot_mapping, metadata.num_blocks * metadata.block_size
    if not isinstance(slots, np.ndarray) or slots.dtype != np.int32 or slots.ndim != 1:
        raise LoracleError(f"slot_mapping must be int32 of one axis on the host, not {slots.dtype} of {slots.shape}")
    wrong = np.flatnonzero((slots < 0) | (slots >= capacity))
    if wrong.size:
        t = int(wrong[0])
        raise LoracleError(f"slot_mapping[{t}] is {slots[t]}: the cache has slots 0 to {capacity - 1}")
    order = np.argsort(slots, kind="stable")
    twice = np.flatnonzero(np.diff(slots[order]) == 0)
    if twice.size:
        first, second = order[twice[0]], order[twice[0] + 1]
        raise LoracleError(f"slot {slots[first]} is owned twice: by token {first} and by token {second}")
