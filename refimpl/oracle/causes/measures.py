"""A mistake in a measure that is not round: how often must it be made at a token, so that noise is left?"""

from collections.abc import Sequence

import numpy as np

from ...arrays import Array
from .mistakes import Mistake
from .mix_up import Source
from .trial import Given, Row, presence, residuals
from .walk import Walk

ROUNDS = 6  # of Newton's method
STEP = 1e-3  # of a factor, for its derivative
LARGEST = 100.0  # a larger factor is none
PLAIN = 3.0  # bits of a source and its region, of which any measure is tried; larger: slower
FREE = 3.0  # bits of a factor that is another one for each adapter


def factor(
    walk: Walk, before: Sequence[int], source: Source, at: Sequence[Array], limit: float, given: Sequence[Given] = ()
) -> list[float | None]:
    """Return for each set of modules how often a source must be added so that noise is left in the row of the token
    behind some blocks; None where it cannot be. By Newton's method, from none of it."""
    times, best = np.zeros(len(at)), np.full(len(at), np.inf)
    fitting: list[float | None] = [None] * len(at)
    for _ in range(ROUNDS):
        rows = [Row(0, one, value, ()) for one, value in zip(at, times, strict=True)]
        rows += [Row(0, one, value + STEP, ()) for one, value in zip(at, times, strict=True)]
        rows_left = residuals(walk, before, 1, [source], [(row,) for row in rows], given)
        here, moved = rows_left[: len(at)], rows_left[len(at) :]
        ratios = np.sqrt(np.mean(here**2, axis=1))
        for i in np.flatnonzero((ratios < limit) & (ratios < best)):
            fitting[i] = float(times[i])
        best = np.minimum(best, ratios)
        slope = (moved - here) / STEP
        times = times - (slope * here).sum(axis=1) / np.maximum((slope**2).sum(axis=1), 1e-30)
        times = np.clip(times, -LARGEST, LARGEST)
    return fitting


def factors(
    walk: Walk,
    before: Sequence[int],
    sources: Sequence[tuple[str, Source]],
    limit: float,
    given: Sequence[Given] = (),
) -> list[Mistake]:
    """Return the own delta, or a part that is plain to say, at any modules, in whatever measure leaves noise."""
    regions = walk.suspect.module_regions
    fitting = []
    for family, source in sources:
        if source.kind != "own" or source.cost > PLAIN:
            continue
        sets: dict[bytes, list[int]] = {}
        (present,) = presence(walk, before, 1, [source])
        for j, region in enumerate(regions):
            if source.cost + region.cost <= PLAIN and (here := region.members & present).any():
                sets.setdefault(here.tobytes(), []).append(j)
        same = list(sets.values())
        values = factor(walk, before, source, [regions[some[0]].members & present for some in same], limit, given)
        for some, value in zip(same, values, strict=True):
            if value is not None and abs(value) > 0:
                fitting += [Mistake(family, regions[j].words, None, source.cost + regions[j].cost + FREE) for j in some]
    return sorted(fitting, key=lambda one: one.cost)
