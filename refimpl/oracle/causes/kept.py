"""Keys and values of a prefix that are another adapter's, whatever its tokens' rows were computed with.

A prefix cache that takes one request's tokens for another's gives their keys and values; logits it computes anew: from
those, or from keys and values that it then does not keep.

    token      0   1   2   3   4   5          the first four tokens lie in a cache, from made-1
    reads      made-1's        |   both       so all tokens are computed with each other adapter, and from the first
    row        ok, or wrong    wrong          wrong row on the request goes on behind those
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
    if before.line is None or before.dead is None or (walk.first_shown and before.dead <= walk.first_shown):
        return before
    place, best = [one.family for one in cause].index(FAMILY), before
    for source in options.get(FAMILY, ()):
        keep = [one.line for one in (before, best) if one.line]
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
    begun = []
    for tokens in sorted(lengths):
        states = [*line.possible, *(frozenset([line.state]) for _ in rows[len(line.possible) : tokens])][:tokens]
        possible = tuple(
            frozenset((*state[:place], source.key, *state[place + 1 :]) for state in some) for some in states
        )
        begun.append(Line(tuple(blocks[:tokens]), possible, line.state))
    return begun
