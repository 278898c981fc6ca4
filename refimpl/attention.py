"""Attention: softmax(scale * q k^T) v, with keys and values read through a block table.

Request r has `n` new tokens at the end of a context of `context_lens[r]` tokens whose keys and values are all in the
cache already, the new ones included. That is prefill (all of a prompt is new), chunked prefill (a piece of it) and
decode (one token) alike.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .arrays import Array, Float, Precision, namespace, rounded, widen
from .config import View
from .layers import softcap, softmax, softmax_with_sinks
from .memory_pool import empty
from .plans import AttentionMetadata, Span
from .tiles import Tile, first_visible, slots_of, stacks_of


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
    v_cache: Float[Array, "blocks block_size kv_heads value_dim"],
    metadata: AttentionMetadata,
    view: View,
    p: Precision,
) -> Float[Array, "tokens heads*value_dim"]:
    """The definition: one token, one head at a time, each key read from (block, offset).

    A sink is one score more, behind those of the keys, and its probability is then dropped: what a token gets sums to
    less than 1. The scores minus their largest are then rounded once more, as modeling_gpt_oss.py does."""
    tokens, heads, _ = q.shape
    xp, (_, _, kv_heads, value_dim), scale = namespace(q), v_cache.shape, score_scale(q, view)
    out = xp.empty((tokens, heads, value_dim), q.dtype)
    for t, slots in visible(metadata, view.window):
        for h in range(heads):
            kv_head = h // (heads // kv_heads)  # grouped queries (GQA): neighbours share a key head
            keys = xp.stack([k_cache[block, offset, kv_head] for block, offset in slots])
            values = xp.stack([v_cache[block, offset, kv_head] for block, offset in slots])
            scores = rounded(rounded(keys @ q[t, h], p.scores) * scale, p.scores)
            scores = softcap(scores, view.softcap, p.scores)
            if view.sinks is not None:
                scores = xp.append(scores, widen(view.sinks[h : h + 1], p.compute))
                scores = rounded(scores - scores.max(), p.scores)
            out[t, h] = softmax(scores, p)[: len(slots)] @ values
    return rounded(out, p.attention).reshape(tokens, heads * value_dim)


def attention(
    q: Float[Array, "tokens heads head_dim"],
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads value_dim"],
    metadata: AttentionMetadata,
    view: View,
    p: Precision,
) -> Float[Array, "tokens heads*value_dim"]:
    """The same, tile by tile (tiles.py): a tile is two batched products, and a stack of tiles shares what lies between.

    The `group` query heads that share a key head are rows of one matrix, token by token. One key head of two query
    heads, and a stack of two tiles: a decode step that sees three keys, and three new tokens at the end of five:

        queries [rows, head_dim]    keys^T [head_dim, keys]    scores [rows, widest]
                                      0  1  2
        token 2, head 0   - - - -     |  |  |                  . . . o o     o: no key of this request, -inf (hide)
        token 2, head 1   - - - -     |  |  |                  . . . o o
                                   x  0  1  2  3  4         =
        token 2, head 0   - - - -     |  |  |  |  |            . . . x x     x: the future, -inf (mask)
        token 2, head 1   - - - -     |  |  |  |  |            . . . x x
        token 3, head 0   - - - -     |  |  |  |  |            . . . . x
        token 3, head 1   - - - -     |  |  |  |  |            . . . . x
        token 4, head 0   - - - -     |  |  |  |  |            . . . . .
        token 4, head 1   - - - -     |  |  |  |  |            . . . . .

    Then softmax over each row, and each tile's own columns times its values [keys, head_dim]: a NaN of one request
    meets no number of another."""
    (tokens, heads, head_dim), (_, _, kv_heads, value_dim) = q.shape, v_cache.shape
    xp, scale, group = namespace(q), score_scale(q, view), heads // kv_heads
    queries = q.reshape(tokens, kv_heads, group, head_dim).transpose(1, 0, 2, 3).reshape(kv_heads, -1, head_dim)
    keys_of, values_of = by_tile(k_cache), by_tile(v_cache)
    mixed = empty((*queries.shape[:2], value_dim), q)
    for tiles in stacks_of(metadata.device, view.window, heads):
        rows = [slice(group * tile.start, group * tile.stop) for tile in tiles]
        keys = [keys_of(tile).transpose(1, 2, 0) for tile in tiles]
        scores = products([queries[:, own_rows] for own_rows in rows], keys)
        scores = rounded(scores, p.scores)
        scores *= scale
        scores = softcap(rounded(scores, p.scores), view.softcap, p.scores)
        hide(scores.reshape(kv_heads, -1, group, scores.shape[2]), tiles, view.window)
        weights, above = probabilities(scores, view, p), 0
        for tile, own_rows in zip(tiles, rows, strict=True):
            below = above + group * tile.queries
            values = values_of(tile).transpose(1, 0, 2)
            xp.matmul(weights[:, above:below, : tile.keys], values, out=mixed[:, own_rows])
            above = below
    mixed = mixed.reshape(kv_heads, tokens, group, value_dim).transpose(1, 0, 2, 3)
    return rounded(mixed.reshape(tokens, heads * value_dim), p.attention)


def probabilities(scores: Float[Array, "kv_heads rows keys"], view: View, p: Precision) -> Array:
    """Softmax over each row, beside the sink of its query head where there are sinks. Rows: token by token, in each of
    them the query heads that share the key head."""
    if view.sinks is None:
        return softmax(scores, p)
    kv_heads, rows, _ = scores.shape
    sinks = widen(view.sinks, p.compute).reshape(kv_heads, 1, -1)
    sinks = namespace(scores).broadcast_to(sinks, (kv_heads, rows // sinks.shape[2], sinks.shape[2]))
    return softmax_with_sinks(scores, sinks.reshape(kv_heads, rows, 1), p)


def products(
    queries: Sequence[Float[Array, "kv_heads rows head_dim"]], keys: Sequence[Float[Array, "kv_heads head_dim keys"]]
) -> Float[Array, "kv_heads all_rows widest"]:
    """Return each tile's product, one below the other, as wide as the last of them; 0 where another is narrower."""
    xp, kv_heads, widest = namespace(queries[0]), len(queries[0]), keys[-1].shape[2]
    stack = xp.zeros((kv_heads, sum(part.shape[1] for part in queries), widest), queries[0].dtype)
    above = 0
    for q, k in zip(queries, keys, strict=True):
        below = above + q.shape[1]
        xp.matmul(q, k, out=stack[:, above:below, : k.shape[2]])
        above = below
    return stack


def hide(scores: Float[Array, "kv_heads queries group widest"], tiles: Sequence[Tile], window: int | None) -> None:
    """-inf, in place, where a query does not see the key, and where a column is no key of its request."""
    xp, above = namespace(scores), 0
    for tile in tiles:
        part = scores[:, above : above + tile.queries]
        part[..., tile.keys :] = -np.inf
        if tile.queries > 1:  # one query sees all the keys that were gathered for it
            part[..., : tile.keys] += mask(tile.queries, tile.keys, window, xp, scores.dtype)[:, None]
        above += tile.queries


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


def by_tile(
    cache: Float[Array, "blocks block_size kv_heads head_dim"],
) -> Callable[[Tile], Float[Array, "keys kv_heads head_dim"]]:
    """A function that gathers the keys, or the values, of one tile: where they lie side by side, a slice."""
    rows = cache.reshape(-1, *cache.shape[2:])
    return lambda tile: gather(cache, tile.span, tile.lo, tile.hi) if tile.slots is None else rows[tile.slots]


def gather(
    cache: Float[Array, "blocks block_size kv_heads head_dim"], span: Span, lo: int, hi: int
) -> Float[Array, "keys kv_heads head_dim"]:
    """Positions lo to hi of one request, in order. Blocks that lie side by side are a view, not a copy."""
    _, block_size, kv_heads, head_dim = cache.shape
    if isinstance(span.blocks, slice):
        return cache.reshape(-1, kv_heads, head_dim)[slots_of(span, lo, hi, block_size)]
    first, past = lo // block_size, -(-hi // block_size)
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
