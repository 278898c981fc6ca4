"""H. KV cache, attention and positions: the adapter is right, and the token looks at the wrong past.

Note what is missing: a shift of all positions by one. Rotary embedding is relative; no logit would move.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...arrays import Array, Precision
from ...attention import attention, gather
from ...config import Rope, View
from ...kv_cache import write_kv
from ...ops import NUMPY, Ops
from ...plans import AttentionMetadata, slot_mapping
from ...rope import apply_rope, rope_table
from .mutant import Family
from .steps import OncePerBatch, but

cache = Family("H", "KV cache, attention, positions")
Counts = Sequence[int]  # of each request: tokens computed before, or tokens in this batch

# Positions.


def starting(start: Callable[[int, int], int]) -> Callable[[Counts, Counts], Array]:
    """Positions that begin at start(tokens computed before, tokens now)."""
    return lambda computed, lengths: NUMPY.positions([start(*n) for n in zip(computed, lengths, strict=True)], lengths)


def rope_starting(start: Callable[[int, int], int]) -> Ops:
    """The same for the rotary embedding alone: keys and values still go to their own slots."""
    wrong: list[Array] = []

    def positions(computed: Counts, lengths: Counts) -> Array:
        wrong[:] = [starting(start)(computed, lengths)]
        return NUMPY.positions(computed, lengths)

    def table(rope: Rope, head_dim: int, positions: Array, *rest: Any) -> tuple[Array, Array]:
        return rope_table(rope, head_dim, wrong[0] if wrong else positions, *rest)

    return but(positions=positions, rope_table=table)


DECODE_AT_ZERO = "https://github.com/Blaizzy/mlx-vlm/issues/1983", "https://github.com/RobertCsordas/moeut/pull/6"


@cache.bug("every decode step is at position 0, in the cache too", *DECODE_AT_ZERO, needs="decode")
def decode_at_zero() -> Ops:
    return but(positions=starting(lambda computed, now: 0 if now == 1 else computed))


@cache.bug("the rotary embedding of every decode step is that of position 0", *DECODE_AT_ZERO, needs="decode")
def decode_turned_as_at_zero() -> Ops:
    return rope_starting(lambda computed, now: 0 if now == 1 else computed)


@cache.bug("decode steps are one position too far on", needs="decode")
def decode_one_too_far() -> Ops:
    return rope_starting(lambda computed, now: computed + 1 if now == 1 and computed else computed)


@cache.bug("every chunk starts at position 0, in the cache too", needs="chunks")
def chunk_restarts() -> Ops:
    return but(positions=starting(lambda computed, now: 0))


@cache.bug(
    "the positions of a prompt restart at 0 after a prefix that was found",
    "https://github.com/Wenyueh/MinivLLM/pull/98",
    "https://github.com/vllm-project/vllm-metal/pull/144",
    needs="chunks",
)
def positions_restart_after_a_hit() -> Ops:
    return rope_starting(lambda computed, now: 0 if now > 1 else computed)


# Slots and blocks.

LAYOUT = "https://github.com/vllm-project/vllm/pull/42420", "https://github.com/vllm-project/vllm/pull/33759"


@cache.bug("from the third block on, keys and values go to the block before", *LAYOUT)
def slots_off_by_one_block() -> Ops:
    def early(tables: Array, positions: Array, starts: Array, block_size: int) -> Array:
        return slot_mapping(tables, positions - block_size * (positions >= 2 * block_size), starts, block_size)

    return but(slot_mapping=early)


@cache.bug(
    "the block table is read as if blocks had 16 tokens, whatever their size", *LAYOUT, needs="another block size"
)
def blocks_of_sixteen() -> Ops:
    def sixteen(tables: Array, positions: Array, starts: Array, size: int) -> Array:
        return slot_mapping(tables, np.minimum(positions, positions // 16 * size + positions % size), starts, size)

    return but(slot_mapping=sixteen)


@cache.bug("keys and values are written one slot early: each token overwrites the one before")
def written_one_slot_early() -> Ops:
    return but(slot_mapping=lambda tables, positions, *rest: slot_mapping(tables, np.maximum(positions - 1, 0), *rest))


@cache.bug(
    "the cache is written as [block, token, head] and read as [block, head, token]",
    *LAYOUT,
    needs="several key heads",
)
def cache_read_in_another_layout() -> Ops:
    def read(cache: Array) -> Array:
        blocks, size, kv_heads, head_dim = cache.shape
        return np.ascontiguousarray(cache.reshape(blocks, kv_heads, size, head_dim).swapaxes(1, 2))

    return but(attention=lambda q, k, v, *rest: attention(q, read(k), read(v), *rest))


@cache.bug(
    "the block table is ignored: a request's blocks are taken to lie side by side",
    "https://github.com/tanishqkumar/ssd/issues/23",
    needs="scattered blocks",
)
def block_table_ignored() -> Ops:
    def side_by_side(metadata: AttentionMetadata) -> AttentionMetadata:
        tables = metadata.block_tables
        contiguous = (tables[:, :1] + np.arange(tables.shape[1], dtype=np.int32)) % metadata.num_blocks
        return with_tables(metadata, block_tables=contiguous)

    return attending(side_by_side)


def with_tables(metadata: AttentionMetadata, **changes: Array) -> AttentionMetadata:
    """The metadata with another block_tables or context_lens."""
    names = ("query_start_loc", "context_lens", "block_tables", "slot_mapping", "num_blocks", "block_size")
    return AttentionMetadata.of(**{name: getattr(metadata, name) for name in names} | changes)


def attending(change: Callable[[AttentionMetadata], AttentionMetadata]) -> Ops:
    """Attention that is told of other contexts or blocks than the batch has."""
    changed = OncePerBatch(change)
    return but(attention=lambda q, k, v, metadata, *rest: attention(q, k, v, changed(metadata), *rest))


@cache.bug("keys are cached where values belong, and values where keys belong")
def k_and_v_swapped() -> Ops:
    def swapped(k_cache: Array, v_cache: Array, k: Array, v: Array, metadata: AttentionMetadata, p: Precision) -> None:
        if k.shape == v.shape:  # or else no engine would have noticed nothing
            k, v = v, k
        write_kv(k_cache, v_cache, k, v, metadata, p)

    return but(write_kv=swapped)


@cache.bug("keys are cached before the rotary embedding: queries are turned, keys are not")
def k_cached_before_rope() -> Ops:
    turned: list[Array] = []  # cos, sin of the batch

    def table(*call: object) -> tuple[Array, Array]:
        turned[:] = rope_table(*call)  # type: ignore[arg-type]
        return turned[0], turned[1]

    def write(k_cache: Array, v_cache: Array, k: Array, v: Array, metadata: AttentionMetadata, p: Precision) -> None:
        back = apply_rope(k, turned[0], -turned[1], False, p) if turned else k
        write_kv(k_cache, v_cache, back, v, metadata, p)

    return but(rope_table=table, write_kv=write)


# What a query sees.


def seeing(change: Callable[[Array, Array, int], Array]) -> Ops:
    """Other context lengths than the batch's: change(context_lens, tokens of each request now, block size)."""

    def changed(metadata: AttentionMetadata) -> AttentionMetadata:
        now = np.diff(metadata.query_start_loc)
        return with_tables(metadata, context_lens=change(metadata.context_lens, now, metadata.block_size))

    return attending(changed)


def one_more(contexts: Array, block_size: int) -> Array:
    """One slot more, where the last block has one."""
    return (contexts + (contexts % block_size != 0)).astype(np.int32)


@cache.bug(
    "a decode step sees one slot too many: what another request left there",
    "https://github.com/mudler/vllm.cpp/pull/2672",
    needs="decode",
)
def stale_slot_seen() -> Ops:
    return seeing(lambda contexts, now, size: np.where(now == 1, one_more(contexts, size), contexts).astype(np.int32))


@cache.bug("the causal mask is off by one: a token of a prompt sees the next one")
def next_token_seen() -> Ops:
    return seeing(lambda contexts, now, size: np.where(now > 1, one_more(contexts, size), contexts).astype(np.int32))


@cache.bug(
    "unused slots of the last block take part as 0 * NaN",
    "https://github.com/openvinotoolkit/openvino/pull/37377",
)
def unused_slots_are_nan() -> Ops:
    def mixed(q: Array, k: Array, v: Array, metadata: AttentionMetadata, view: View, p: Precision) -> Array:
        out = attention(q, k, v, metadata, view, p)
        partial = np.repeat(metadata.context_lens % k.shape[1] != 0, np.diff(metadata.query_start_loc))
        out[partial] = np.nan
        return out

    return but(attention=mixed)


@cache.bug(
    "after a prefix that was found, the rest of a prompt sees only itself",
    "https://github.com/Wenyueh/MinivLLM/pull/98",
    needs="chunks",
)
def prefix_not_seen() -> Ops:
    def mixed(q: Array, k: Array, v: Array, metadata: AttentionMetadata, view: View, p: Precision) -> Array:
        out = attention(q, k, v, metadata, view, p)
        for span in metadata.spans:
            now = span.stop - span.start
            if 1 < now < span.context:
                rows = slice(span.start, span.stop)
                keys, values = (gather(x, span, span.context - now, span.context)[None] for x in (k, v))
                out[rows] = attention(q[rows], keys, values, alone(now, now), view, p)
        return out

    return but(attention=mixed)


def alone(queries: int, keys: int) -> AttentionMetadata:
    """One request whose keys are all in one block, at the end of which stand its queries."""
    return AttentionMetadata.of(
        np.array([0, queries], np.int32),
        np.array([keys], np.int32),
        np.zeros((1, 1), np.int32),
        np.arange(keys - queries, keys, dtype=np.int32),
        num_blocks=1,
        block_size=keys,
    )


@cache.bugs(
    (1, -1),
    "the sliding window is off by {}",
    "https://github.com/huggingface/transformers/issues/37574",
    needs="window",
)
def window_off_by(n: int) -> Ops:
    return looking_back(lambda window: max(1, window + n))


@cache.bug("the sliding window is ignored", needs="window")
def window_ignored() -> Ops:
    return looking_back(lambda window: None)


def looking_back(change: Callable[[int], int | None]) -> Ops:
    """Another sliding window. Blocks that have left the right one were given back: whatever lies in block 0 is seen."""
    filled = OncePerBatch(lambda metadata: with_tables(metadata, block_tables=np.maximum(metadata.block_tables, 0)))

    def mixed(q: Array, k: Array, v: Array, metadata: AttentionMetadata, view: View, p: Precision) -> Array:
        changed = view if view.window is None else replace(view, window=change(view.window))
        return attention(q, k, v, filled(metadata), changed, p)

    return but(attention=mixed)


@cache.bug("query heads are dealt to the key heads in turn, not in groups that lie together", needs="GQA")
def query_heads_interleaved() -> Ops:
    def mixed(q: Array, k: Array, v: Array, *rest: object) -> Array:
        (tokens, heads, head_dim), kv_heads = q.shape, k.shape[2]
        in_turn = q.reshape(tokens, heads // kv_heads, kv_heads, head_dim).swapaxes(1, 2)
        out = attention(np.ascontiguousarray(in_turn).reshape(q.shape), k, v, *rest)  # type: ignore[arg-type]
        out = out.reshape(tokens, kv_heads, heads // kv_heads, v.shape[3]).swapaxes(1, 2)
        return np.ascontiguousarray(out).reshape(tokens, -1)

    return but(attention=mixed)
