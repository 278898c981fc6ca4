"""Two mistakes in one token, neither of which leaves noise there alone."""

import itertools
from collections.abc import Sequence

import numpy as np

from ..noise.rms import rms
from .mistakes import BANDS, FLOPS, Mistake, named, rows_of_all
from .mix_up import Source
from .trial import presence, residuals
from .walk import Walk

FIRSTS = 64  # mistakes that leave least alone, to each of which every other is added; larger: slower
NUMBERS_AT_MOST = 1 << 25  # of all effects at one token; larger: more memory
PAIRS = 512  # that are tried exactly; larger: slower
NAMES = 4  # of each of the two, where several are the same here; larger: slower


def pairs(
    walk: Walk, before: Sequence[int], sources: Sequence[tuple[str, Source]], limit: float
) -> list[tuple[Mistake, Mistake]]:
    """Return pairs of mistakes that leave noise in the row of the token behind some blocks, together; simplest first.

    What each does alone is known exactly. In a quiet request (quiet.py) effects add up, so that the sums of two of them
    that come nearest to the error are few; those are tried."""
    plain = [source for _, source in sources]
    rows = rows_of_all(walk, presence(walk, before, 1, plain), sources, -1.0, BANDS[-1][1])
    rows = rows[: min(FLOPS // walk.flops, NUMBERS_AT_MOST // walk.raw.vocab)]
    if not rows:
        return []
    error = residuals(walk, before, 1, plain, [()], [])
    leaves = residuals(walk, before, 1, plain, [(row,) for row in rows], [])
    effects = error - leaves
    first = np.argsort(np.square(leaves).sum(axis=1), kind="stable")[:FIRSTS]
    together = np.square(leaves[first]).sum(axis=1)[:, None] - 2 * leaves[first] @ effects.T
    together += np.square(effects).sum(axis=1)[None]
    nearest = np.argsort(together, axis=None, kind="stable")[:PAIRS]
    chosen = [(rows[first[i]], rows[j]) for i, j in zip(*np.unravel_index(nearest, together.shape), strict=True)]
    ratios = rms(residuals(walk, before, 1, plain, chosen, []), axis=1)
    fitting = []
    for n in np.flatnonzero(ratios < limit):
        for one, other in itertools.product(*(named(walk, row, sources)[:NAMES] for row in chosen[n])):
            fitting.append((min(one, other, key=_order), max(one, other, key=_order)))
    return sorted(dict.fromkeys(fitting), key=lambda pair: pair[0].cost + pair[1].cost)


def _order(mistake: Mistake) -> tuple[str, str]:
    return mistake.family, mistake.modules
