"""Attention: softmax(scale * q k^T) v, with keys and values read through a block table.

Request r has `n` new tokens at the end of a context of `context_lens[r]` tokens whose keys and values are all in the
cache already, the new ones included. That is prefill (all of a prompt is new), chunked prefill (a piece of it) and
decode (one token) alike.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .arrays import Array, Float, Precision, namespace, rounded
from .config import View
from .layers import softcap, softmax
from .plans import AttentionMetadata, Span

QUERIES_AT_ONCE = 256  # bounds the score matrix; a causal tile also skips the keys after its last query


def first_visible(position: int, window: int | None) -> int:
    """The first position that a token at `position` sees: 0, or the start of its sliding window (itself included)."""
    return 0 if window is None else max(0, position - window + 1)


def visible(metadata: AttentionMetadata, window: int | None) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Each token of the batch, with the (block, offset) of every key that it sees."""
    block_size = metadata.block_size
    for r, table in enumerate(metadata.block_tables.tolist()):
        start, stop = metadata.query_start_loc[r : r + 2].tolist()
        for t in range(start, stop):
            position = int(metadata.context_lens[r]) - stop + t
            keys = range(first_visible(position, window), position + 1)
            yield t, [(table[j // block_size], j % block_size) for j in keys]


def attention_per_token(
    q: Float[Array, "tokens heads head_dim"],
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    metadata: AttentionMetadata,
    view: View,
    p: Precision,
) -> Float[Array, "tokens heads*head_dim"]:
    """The definition: one token, one head at a time, each key read from (block, offset)."""
    tokens, heads, head_dim = q.shape
    xp, kv_heads, scale = namespace(q), k_cache.shape[2], score_scale(q, view)
    out = xp.empty((tokens, heads, head_dim), q.dtype)
    for t, slots in visible(metadata, view.window):
        for h in range(heads):
            kv_head = h // (heads // kv_heads)  # grouped queries (GQA): neighbours share a key head
            keys = xp.stack([k_cache[block, offset, kv_head] for block, offset in slots])
            values = xp.stack([v_cache[block, offset, kv_head] for block, offset in slots])
            scores = rounded(rounded(keys @ q[t, h], p.scores) * scale, p.scores)
            out[t, h] = softmax(softcap(scores, view.softcap, p.scores), p) @ values
    return rounded(out, p.attention).reshape(tokens, heads * head_dim)


def attention(
    q: Float[Array, "tokens heads head_dim"],
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    metadata: AttentionMetadata,
    view: View,
    p: Precision,
) -> Float[Array, "tokens heads*head_dim"]:
    """The same, one request at a time: its keys are gathered once, and all of its heads are one batched product.

    The `group` query heads that share a key head are stacked below each other, n tokens each. For one key head of two
    query heads, three new tokens at the end of five:

        queries [group * n, head_dim]    keys^T [head_dim, keys]    scores [group * n, keys]
                                           0  1  2  3  4
        head 0, token 2   - - - -          |  |  |  |  |            . . . x x     x: the future, -inf (mask)
        head 0, token 3   - - - -          |  |  |  |  |            . . . . x
        head 0, token 4   - - - -    x     |  |  |  |  |     =      . . . . .
        head 1, token 2   - - - -          |  |  |  |  |            . . . x x
        head 1, token 3   - - - -          |  |  |  |  |            . . . . x
        head 1, token 4   - - - -          |  |  |  |  |            . . . . .

    softmax over each row, times values [keys, head_dim]; then heads and tokens change places again."""
    tokens, heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    group = heads // kv_heads
    xp, scale = namespace(q), score_scale(q, view)
    out = xp.empty((tokens, kv_heads, group, head_dim), q.dtype)
    for span in metadata.device.spans:
        offset = span.context - span.stop  # position of token t is t + offset
        for start in range(span.start, span.stop, QUERIES_AT_ONCE):
            stop = min(start + QUERIES_AT_ONCE, span.stop)
            lo, hi = first_visible(start + offset, view.window), stop + offset
            keys, values = gather(k_cache, span, lo, hi), gather(v_cache, span, lo, hi)
            n = stop - start
            queries = q[start:stop].reshape(n, kv_heads, group, head_dim).transpose(1, 2, 0, 3)
            queries = queries.reshape(kv_heads, group * n, head_dim)
            scores = rounded(queries @ keys.transpose(1, 2, 0), p.scores)
            scores = softcap(rounded(scores * scale, p.scores), view.softcap, p.scores)
            scores = scores.reshape(kv_heads, group, n, hi - lo)
            if n > 1:  # one query sees all the keys that were gathered for it
                scores += mask(n, hi - lo, view.window, xp, scores.dtype)
            mixed = softmax(scores, p).reshape(kv_heads, group * n, hi - lo) @ values.transpose(1, 0, 2)
            out[start:stop] = mixed.reshape(kv_heads, group, n, head_dim).transpose(2, 0, 1, 3)
    return rounded(out, p.attention).reshape(tokens, heads * head_dim)


def score_scale(q: Float[Array, "tokens heads head_dim"], view: View) -> np.floating:
    """What q k is multiplied by: the view's scale, or 1/sqrt(head_dim) (Vaswani et al. 2017)."""
    return q.dtype.type(1 / math.sqrt(q.shape[-1]) if view.scale is None else view.scale)


def mask(
    queries: int, keys: int, window: int | None, xp: Any = np, dtype: Any = np.float64
) -> Float[Array, "queries keys"]:
    """0 where query i may see key j, else -inf. The last query sits on the last key."""
    position = xp.arange(keys - queries, keys)[:, None]
    key = xp.arange(keys)[None, :]
    shown = key <= position
    if window is not None:
        shown &= key > position - window
    return xp.where(shown, 0, -xp.inf).astype(dtype)


def gather(
    cache: Float[Array, "blocks block_size kv_heads head_dim"], span: Span, lo: int, hi: int
) -> Float[Array, "keys kv_heads head_dim"]:
    """Positions lo to hi of one request, in order. Blocks that lie side by side are a view, not a copy."""
    _, block_size, kv_heads, head_dim = cache.shape
    first, past = lo // block_size, -(-hi // block_size)
    if isinstance(span.blocks, slice):
        shift = span.blocks.start - span.first
        blocks = cache[first + shift : past + shift]
    else:
        blocks = cache[span.blocks[first - span.first : past - span.first]]
    return blocks.reshape(-1, kv_heads, head_dim)[lo - first * block_size : hi - first * block_size]


# ---- in both directions: pictures, whose tokens have no order in time and are kept for no later step ---------------


def full_attention_per_token(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens heads head_dim"],
    v: Float[Array, "tokens heads head_dim"],
    starts: Sequence[int],
    p: Precision,
) -> Float[Array, "tokens heads*head_dim"]:
    """The definition: softmax(q k^T / sqrt(head_dim)) v, one token and one head at a time.

    starts: sequence i is the tokens starts[i] to starts[i + 1]; none sees another."""
    tokens, heads, head_dim = q.shape
    out, scale = namespace(q).empty_like(q), q.dtype.type(1 / math.sqrt(head_dim))
    for start, stop in pairwise(starts):
        for t in range(start, stop):
            for h in range(heads):
                scores = rounded(rounded(k[start:stop, h] @ q[t, h], p.scores) * scale, p.scores)
                out[t, h] = softmax(scores, p) @ v[start:stop, h]
    return rounded(out, p.attention).reshape(tokens, heads * head_dim)


def full_attention(
    q: Float[Array, "tokens heads head_dim"],
    k: Float[Array, "tokens heads head_dim"],
    v: Float[Array, "tokens heads head_dim"],
    starts: Sequence[int],
    p: Precision,
) -> Float[Array, "tokens heads*head_dim"]:
    """The same, one sequence at a time: all of its heads are one batched product."""
    tokens, heads, head_dim = q.shape
    out, scale = namespace(q).empty_like(q), q.dtype.type(1 / math.sqrt(head_dim))
    for start, stop in pairwise(starts):
        queries, keys, values = (x[start:stop].transpose(1, 0, 2) for x in (q, k, v))
        scores = rounded(rounded(queries @ keys.transpose(0, 2, 1), p.scores) * scale, p.scores)
        out[start:stop] = (softmax(scores, p) @ values).transpose(1, 0, 2)
    return rounded(out, p.attention).reshape(tokens, heads * head_dim)
