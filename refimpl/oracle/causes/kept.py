"""Keys and values of a prefix that are another adapter's, whatever its tokens' rows were computed with.

A prefix cache that takes one request's tokens for another's gives their keys and values; logits it computes anew: from
those, or from keys and values that it then does not keep.

    token      0   1   2   3   4   5          the first four tokens lie in a cache, from made-1
    reads      made-1's        |   both       so all tokens are computed with each other adapter, and from the first
    row        ok, or wrong    wrong          wrong row on the request goes on behind those

Where nobody sees the rows of a prefix, but the engine tells how much of it lay in the cache, some first blocks of that
may be another adapter's, and the others its own, computed behind those.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .follow import Followed, Line, follow
from .mistakes import Mistake
from .mix_up import KEPT, Source
from .sources import WHICHEVER
from .walk import Copy, Term, Walk

FAMILY = f"kept: {WHICHEVER}"
BLOCK, LENGTHS = 4, 10  # tokens of a block, at least; beginnings that are tried where nobody sees them; larger: slower
OF_ANOTHER = Mistake(FAMILY, "", 1.0, 3.5)


def kept_sources(others: Sequence[Source]) -> list[Source]:
    """Return keys and values of each other adapter. others: its delta in place of the own one."""
    prefix = "instead: "
    return [
        replace(
            one,
            key=f"kept: {one.key.removeprefix(prefix)}",
            words=f"the keys and values of {one.key.removeprefix(prefix)}, in place of its own",
            kind=KEPT,
        )
        for one in others
        if one.key.startswith(prefix)
    ]


def follow_kept(
    walk: Walk, cause: Sequence[Mistake], options: Mapping[str, Sequence[Source]], before: Followed, limit: float
) -> Followed:
    """Follow a cause, one of whose mistakes is OF_ANOTHER, along a request that has such keys and values.

    before: where it ends without that. Returned is whichever goes furthest, that one included."""
    if before.line is None or before.dead is None:
        return before
    is_hidden = walk.first_shown > 0 and before.dead <= walk.first_shown
    place, best = [one.family for one in cause].index(FAMILY), before
    for source in options.get(FAMILY, ()):
        keep = [one.line for one in (before, best) if one.line]
        if is_hidden:
            begun = _begun_hidden(walk, source, before.line, place, keep)
        else:
            begun = _begun(walk, source, before.line, place, limit, keep)
        for one in follow(walk, [cause] * len(begun), options, limit, begun, keep) if begun else ():
            if one.dead is None:
                return one
            best = max(best, one, key=lambda followed: followed.dead or 0)
    return best


def _begun(walk: Walk, source: Source, line: Line, place: int, limit: float, keep: Sequence[Line]) -> list[Line]:
    """Return how a request may begin with keys and values of one source: its rows were right without that so far, or
    are right if they read what was kept. place: of that mistake in its cause. keep: lines whose blocks stay."""
    blocks = walk.new_blocks(walk.tokens, {block for one in keep for block in one.blocks})
    rows = np.arange(walk.tokens)
    everywhere = np.ones((walk.tokens, len(walk.modules)), bool)
    walk.compute([Copy(0, (), blocks)], [Term(source, rows, everywhere, np.ones(walk.tokens))])
    logits = walk.compute([Copy(t, blocks[:t], [block]) for t, block in enumerate(blocks)], (), into=())
    fits = walk.ratios(rows, logits) < limit
    lengths = {len(line.blocks), walk.tokens if fits.all() else int(np.argmin(fits))} - {0}
    return [_with_source(source, line, place, blocks[:tokens]) for tokens in sorted(lengths)]


def _begun_hidden(walk: Walk, source: Source, line: Line, place: int, keep: Sequence[Line]) -> list[Line]:
    """Return the same of a request whose first rows nobody sees: with some first blocks of those that its engine tells
    to have found, all of them first; none if it tells nothing."""
    lengths = [walk.cached, *range((walk.cached - 1) // BLOCK * BLOCK, 0, -BLOCK)][:LENGTHS] if walk.cached else []
    blocks = walk.new_blocks(walk.cached, {block for one in keep for block in one.blocks})
    everywhere = np.ones((walk.cached, len(walk.modules)), bool)
    if lengths:
        walk.compute([Copy(0, (), blocks)], [Term(source, np.arange(walk.cached), everywhere, np.ones(walk.cached))])
    return [_with_source(source, line, place, blocks[:tokens]) for tokens in lengths]


def _with_source(source: Source, line: Line, place: int, blocks: Sequence[int]) -> Line:
    """Return how a request begins whose first tokens have keys and values of a source, in these blocks."""
    count = len(blocks)
    states = [*line.possible, *[frozenset([line.state])] * max(count - len(line.possible), 0)][:count]
    possible = tuple(frozenset((*state[:place], source.key, *state[place + 1 :]) for state in some) for some in states)
    return Line(tuple(blocks), possible, line.state)
