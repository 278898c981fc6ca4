"""Attention: softmax(q k^T / sqrt(head_dim)) v, with keys and values read through a block table.

Prefill, chunked prefill and decode are one thing: request r has `n` new tokens at the end of a context of
`context_lens[r]` tokens whose keys and values are all in the cache already, the new ones included.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from .arrays import Array, Float, Int, Precision, namespace, rounded
from .layers import softmax

QUERIES_AT_ONCE = 256  # bounds the score matrix; a causal tile also skips the keys after its last query


def first_visible(position: int, window: int | None) -> int:
    """The first position that a token at `position` sees: 0, or the start of its sliding window (itself included)."""
    return 0 if window is None else max(0, position - window + 1)


def attention_per_token(
    q: Float[Array, "tokens heads head_dim"],
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    query_start_loc: Int[Array, " starts"],
    context_lens: Int[Array, " requests"],
    block_tables: Int[Array, "requests table"],
    window: int | None,
    p: Precision,
) -> Float[Array, "tokens heads*head_dim"]:
    """The definition: one token, one head at a time, each key fetched from slot (block, offset)."""
    tokens, heads, head_dim = q.shape
    block_size, kv_heads = k_cache.shape[1], k_cache.shape[2]
    out = namespace(q).empty((tokens, heads, head_dim), q.dtype)
    for r in range(len(context_lens)):
        n = query_start_loc[r + 1] - query_start_loc[r]
        for i in range(n):
            t, position = query_start_loc[r] + i, context_lens[r] - n + i
            seen = range(first_visible(position, window), position + 1)
            where = [(block_tables[r, j // block_size], j % block_size) for j in seen]
            for h in range(heads):
                g = h // (heads // kv_heads)  # GQA: consecutive query heads share a key head
                keys = namespace(q).stack([k_cache[block, offset, g] for block, offset in where])
                values = namespace(q).stack([v_cache[block, offset, g] for block, offset in where])
                scores = rounded(rounded(keys @ q[t, h], p.scores) * q.dtype.type(1 / math.sqrt(head_dim)), p.scores)
                out[t, h] = softmax(scores, p) @ values
    return rounded(out, p.attention).reshape(tokens, heads * head_dim)


def attention(
    q: Float[Array, "tokens heads head_dim"],
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    query_start_loc: Int[Array, " starts"],
    context_lens: Int[Array, " requests"],
    block_tables: Int[Array, "requests table"],
    window: int | None,
    p: Precision,
) -> Float[Array, "tokens heads*head_dim"]:
    """The same, one request at a time: its keys are gathered once and all of its heads are one batched product."""
    tokens, heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    group = heads // kv_heads
    xp, scale = namespace(q), q.dtype.type(1 / math.sqrt(head_dim))
    out = xp.empty((tokens, kv_heads, group, head_dim), q.dtype)
    for r in range(len(context_lens)):
        first_query, past_query, context = int(query_start_loc[r]), int(query_start_loc[r + 1]), int(context_lens[r])
        offset = context - past_query  # position of token t is t + offset
        for start in range(first_query, past_query, QUERIES_AT_ONCE):
            stop = min(start + QUERIES_AT_ONCE, past_query)
            lo, hi = first_visible(start + offset, window), stop + offset
            keys = gather(k_cache, block_tables[r], lo, hi)
            values = gather(v_cache, block_tables[r], lo, hi)
            n = stop - start
            queries = q[start:stop].reshape(n, kv_heads, group, head_dim).transpose(1, 2, 0, 3)
            queries = queries.reshape(kv_heads, group * n, head_dim)
            scores = rounded(queries @ keys.transpose(1, 2, 0), p.scores)
            scores = rounded(scores * scale, p.scores).reshape(kv_heads, group, n, hi - lo)
            if n > 1:  # one query sees all the keys that were gathered for it
                scores += mask(n, hi - lo, window, xp, scores.dtype)
            mixed = softmax(scores, p).reshape(kv_heads, group * n, hi - lo) @ values.transpose(1, 0, 2)
            out[start:stop] = mixed.reshape(kv_heads, group, n, head_dim).transpose(2, 0, 1, 3)
    return rounded(out, p.attention).reshape(tokens, heads * head_dim)


def mask(
    queries: int, keys: int, window: int | None, xp: Any = np, dtype: Any = np.float64
) -> Float[Array, "queries keys"]:
    """0 where query i may see key j, else -inf. The last query sits on the last key."""
    position = xp.arange(keys - queries, keys)[:, None]
    key = xp.arange(keys)[None, :]
    seen = key <= position
    if window is not None:
        seen &= key > position - window
    return xp.where(seen, 0, -xp.inf).astype(dtype)


def gather(
    cache: Float[Array, "blocks block_size kv_heads head_dim"], table: Int[Array, " table"], lo: int, hi: int
) -> Float[Array, "keys kv_heads head_dim"]:
    """Positions lo to hi of one request, in order. Blocks that lie side by side are a view, not a copy."""
    _, block_size, kv_heads, head_dim = cache.shape
    first, past = lo // block_size, -(-hi // block_size)
    found = cache[side_by_side(table[first:past].tobytes())].reshape(-1, kv_heads, head_dim)
    return found[lo - first * block_size : hi - first * block_size]


@lru_cache(maxsize=4096)
def side_by_side(blocks: bytes) -> slice | Array:
    """An index for these int32 block numbers: a slice where each is the one before plus 1. The same in every layer."""
    numbers = np.frombuffer(blocks, np.int32)
    if (np.diff(numbers) == 1).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers
