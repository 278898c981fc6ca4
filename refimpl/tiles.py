"""What attention computes at a time: tiles, some tokens of one request, in stacks, some tiles of a batch.

    request 0: all 100 tokens of a prompt     1: a decode step that sees 20 keys     2: one that sees 9
    tiles      64 tokens | 36 tokens          1 token                                1 token
    stacks     [2, 1]  [64 tokens, 64 keys]  [36 tokens, 100 keys]

A tile has its two products to itself. A stack shares the steps between them: a batch of short requests does not take a
dozen NumPy calls for each, and the scores of a long prompt do not leave the cache.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .plans import AttentionMetadata, Span

QUERIES_AT_ONCE = 64  # of a tile: more are fewer products, and more scores of keys that are still in the future
SCORES_AT_ONCE = 1 << 18  # of a stack, all heads: more are fewer steps, and more than a cache holds


class Tile(NamedTuple):
    """Some tokens of one request, start to stop in the batch, and the positions of the keys that they see."""

    span: Span
    start: int
    stop: int
    lo: int
    hi: int
    queries: int  # stop - start
    keys: int  # hi - lo
    slots: slice | None  # the KV slots of these keys, where they lie side by side


def first_visible(position: int, window: int | None) -> int:
    """The first position that a token at `position` sees: 0, or the start of its sliding window (itself included)."""
    return 0 if window is None else max(0, position - window + 1)


def tiles(span: Span, window: int | None, block_size: int) -> Iterator[Tile]:
    """Cut the new tokens of one request in tiles of at most QUERIES_AT_ONCE."""
    offset = span.context - span.stop  # position of token t is t + offset
    for start in range(span.start, span.stop, QUERIES_AT_ONCE):
        stop = min(start + QUERIES_AT_ONCE, span.stop)
        lo, hi = first_visible(start + offset, window), stop + offset
        yield Tile(span, start, stop, lo, hi, stop - start, hi - lo, slots_of(span, lo, hi, block_size))


def slots_of(span: Span, lo: int, hi: int, block_size: int) -> slice | None:
    """The KV slots of positions lo to hi of one request, if its blocks lie side by side."""
    if not isinstance(span.blocks, slice):
        return None
    start = (span.blocks.start - span.first) * block_size
    return slice(start + lo, start + hi)


def stacks(spans: Sequence[Span], window: int | None, heads: int, block_size: int) -> list[list[Tile]]:
    """Return all tiles, those of few keys first, in stacks of at most SCORES_AT_ONCE scores each, or of one tile.

    The scores of a stack are as wide as its last tile has keys."""
    stacked: list[list[Tile]] = []
    queries = 0
    for tile in sorted(
        (tile for span in spans for tile in tiles(span, window, block_size)), key=lambda tile: tile.keys
    ):
        queries += tile.queries
        if not stacked or heads * queries * tile.keys > SCORES_AT_ONCE:
            stacked.append([])
            queries = tile.queries
        stacked[-1].append(tile)
    return stacked


def stacks_of(metadata: AttentionMetadata, window: int | None, heads: int) -> list[list[Tile]]:
    """Return the stacks of a batch: cut once for all layers that have as many heads and see as far."""
    if (window, heads) not in metadata._stacks:
        metadata._stacks[window, heads] = stacks(metadata.spans, window, heads, metadata.block_size)
    return metadata._stacks[window, heads]
