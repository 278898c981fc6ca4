"""Keys and values of padding, written where those of a token belong.

A step of decode rows is padded to the size of a graph. If the rows that fill it up, token 0 at place 0 without an
adapter, have no block of their own, they write into the first place of block 0, or where the last row does:

    place      0     1   2   3   4            that of whoever has block 0, from some step on: h11 of
    reads      pad   own own own own          benchmarks/independent; or its own in the step itself: x11
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...arrays import Array
from ...config import EMBED
from .follow import PASSES, Followed, Line, follow, terms_of
from .mistakes import Mistake
from .mix_up import KEPT, Delta, Point, Source
from .walk import Copy, Term, Walk

FAMILY = "kept: padding"
OF_PADDING = Mistake(FAMILY, "", 1.0, 4.0)


def padding_source(own_delta: Delta) -> Source:
    """Return keys and values of padding. own_delta: what the request's adapters add together."""

    def delta(point: Point) -> Array | None:
        delta_here = own_delta(point)
        if point.module == EMBED:
            change = point.weight[0] - point.weight[np.minimum(point.x, len(point.weight) - 1)]
            return change if delta_here is None else change - delta_here
        return None if delta_here is None else -delta_here

    words = "the key and value of padding (token 0 at place 0, without an adapter), in place of its own,"
    return Source(FAMILY, words, delta, KEPT, 4)


def follow_padding(
    walk: Walk, cause: Sequence[Mistake], options: Mapping[str, Sequence[Source]], before: Followed, limit: float
) -> Followed:
    """Follow a cause, one of whose mistakes is OF_PADDING, along a request whose keys and values padding has
    overwritten. before: where it ends without that. Returned is whichever goes furthest, that one included."""
    best = before
    for _ in range(PASSES):
        if best.line is None or not best.dead or best.dead < walk.first_shown:
            break
        begun = _begun(walk, cause, options, best.line, limit)
        ended = follow(walk, [cause] * len(begun), options, limit, begun) if begun else []
        further = max(ended, key=lambda one: walk.tokens if one.dead is None else one.dead, default=best)
        if further.dead is not None and further.dead <= best.dead:
            break
        best = further
    return best


def _begun(
    walk: Walk, cause: Sequence[Mistake], options: Mapping[str, Sequence[Source]], line: Line, limit: float
) -> list[Line]:
    """Return how a request may go on: with one token's key and value overwritten, any that it has, or the next's."""
    place, sources = [one.family for one in cause].index(FAMILY), options.get(FAMILY, ())
    begun, count = list[Line](), len(line.blocks)
    for source in sources:
        (pad,) = walk.new_blocks(1, set(line.blocks))
        everywhere = np.ones((1, len(walk.modules)), bool)
        walk.compute([Copy(0, (), [pad])], [Term(source, np.zeros(1, int), everywhere, np.ones(1))])
        marked = [
            frozenset((*state[:place], source.key, *state[place + 1 :]) for state in some)
            for some in (*line.possible, frozenset([line.state]))
        ]
        for t in range(count):
            blocks = (*line.blocks[:t], pad, *line.blocks[t + 1 :])
            begun.append(
                replace(line, blocks=blocks, possible=(*line.possible[:t], marked[t], *line.possible[t + 1 :]))
            )
        families = {source.key: source for some in options.values() for source in some}
        terms = terms_of(walk, [cause], [(0, line.state)], families)
        logits = walk.compute([Copy(count, line.blocks, [pad])], terms, writes=False)
        if walk.ratios(np.array([count]), logits)[0] < limit:
            begun.append(replace(line, blocks=(*line.blocks, pad), possible=(*line.possible, marked[-1])))
    return begun
