"""Every mistake that is known of, tried exactly at one token of a request: which of them leave noise in its row?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array
from .mix_up import Source
from .trial import Given, Row, presence, ratios_of
from .walk import Walk

ROUND = (-1.0, 1.0, -0.5, 0.5, -2.0, 2.0)  # how often the own delta is there too much
FLOPS = 10**11  # of all mistakes of so many bits at one token; of a larger base the plainest alone are tried
FEWEST = 32  # that are tried anyhow
BANDS = ((-1.0, 6.0), (6.0, 8.0))  # bits of a source and its region together, tried after one another; more: slower
BEYOND = 3.0  # bits more than those of the plainest that fits, of others that are tried; larger: slower
EQUAL = 1e-9  # bits that do not count
WIDER = 10.0  # of a source that was found, at any region


Effects = dict[tuple[tuple[int, ...], int], Array]  # (blocks before, tokens) -> presence() of the same sources


@dataclass(frozen=True)
class Mistake:
    """A mix-up at some modules, c times. family: which adapter it is of may differ from token to token."""

    family: str
    modules: str
    coefficient: float | None  # None: another one for each adapter
    cost: float


def coefficients_of(source: Source) -> tuple[float, ...]:
    """What may stand instead does so whole; the own delta, or a part of it, may be missing or be there twice."""
    if source.key == "own":
        return ROUND
    return ROUND[:2] if source.kind in ("own", "part") else (1.0,)


def mistakes(
    walk: Walk,
    before: Sequence[int],
    tokens: int,
    sources: Sequence[tuple[str, Source]],
    limit: float,
    given: Sequence[Given] = (),
    bands: Sequence[tuple[float, float]] = BANDS,
    effects: Effects | None = None,
) -> list[Mistake]:
    """Return those that leave noise in the row of the last of some tokens, made in all of them; simplest first.

    before: the blocks of the tokens before these. sources: each with its family. given: what is wrong there besides.
    bands: of how many bits; those of a band are tried where none of the bands before is it. effects: at which modules
    each source does something to the same tokens, where that is known; what is learnt is added."""
    plain, effects = [source for _, source in sources], {} if effects is None else effects
    if (present := effects.get((tuple(before), tokens))) is None:
        present = effects[tuple(before), tokens] = presence(walk, before, tokens, plain)

    def good(rows: Sequence[Row]) -> tuple[list[Row], float]:
        """Return those that fit, and of how many bits the last is that was tried. rows: plain ones first."""
        rows = rows[: max(FEWEST, FLOPS // (walk.flops * tokens))]
        good_rows, last_bits, at_once = list[Row](), 0.0, max(1, walk.at_once // tokens)
        for some in (rows[start : start + at_once] for start in range(0, len(rows), at_once)):
            if good_rows and some[0].bits > good_rows[0].bits + BEYOND:
                break
            ratios = ratios_of(walk, before, tokens, plain, some, given)
            good_rows += [row for row, ratio in zip(some, ratios, strict=True) if ratio < limit]
            last_bits = some[-1].bits
        return good_rows, last_bits

    fitting = list[Row]()
    for least, most in bands:
        fitting, last_bits = good(rows_of_all(walk, present, sources, least, most))
        if fitting:  # of the same sources at other modules this token may not tell
            of_found = present & np.isin(np.arange(len(sources)), [row.source for row in fitting])[:, None]
            fitting += good(rows_of_all(walk, of_found, sources, last_bits - EQUAL, WIDER))[0]
            break
    return sorted(dict.fromkeys(mistake for row in fitting for mistake in named(walk, row, sources)), key=_bits)


def _bits(mistake: Mistake) -> float:
    return mistake.cost


def tried(
    walk: Walk,
    before: Sequence[int],
    sources: Sequence[tuple[str, Source]],
    some: Sequence[Mistake],
    limit: float,
    given: Sequence[Given] = (),
) -> list[Mistake]:
    """Return those of some mistakes that leave noise in the row of the token behind some blocks."""
    rows = [
        (mistake, Row(i, walk.at(mistake.modules), mistake.coefficient or 0.0, ()))
        for mistake in some
        for i, (family, _) in enumerate(sources)
        if family == mistake.family
    ]
    ratios = ratios_of(walk, before, 1, [source for _, source in sources], [row for _, row in rows], given)
    return list(dict.fromkeys(mistake for (mistake, _), ratio in zip(rows, ratios, strict=True) if ratio < limit))


def rows_of_all(
    walk: Walk, present: Array, sources: Sequence[tuple[str, Source]], least: float, most: float
) -> list[Row]:
    """Return every mistake of so many bits; those that are the same here are one, of as many bits as the plainest."""
    regions, rows = walk.suspect.all_regions, list[Row]()
    plain = len(walk.suspect.module_regions) + len(walk.suspect.adapter_regions)
    members, costs = np.array([region.members for region in regions]), np.array([region.cost for region in regions])
    for i, (_, source) in enumerate(sources):
        count = len(regions) if source.key == "own" else plain
        count = 1 if source.kind == "bug" else count  # a known bug is what it is: everywhere
        here = members[:count] & present[i]
        possible = here.any(axis=1) & (source.cost + costs[:count] <= WIDER)
        alike: dict[bytes, list[int]] = {}
        for j in np.flatnonzero(possible):
            alike.setdefault(here[j].tobytes(), []).append(int(j))
        for same in alike.values():
            bits = float(source.cost + costs[same].min())
            if not least < bits <= most:
                continue
            some = coefficients_of(source) if same[0] < plain else coefficients_of(source)[:2]
            rows += [Row(i, here[same[0]].copy(), times, same, bits) for times in some]
    return sorted(rows, key=lambda row: row.bits)


def named(walk: Walk, row: Row, sources: Sequence[tuple[str, Source]]) -> list[Mistake]:
    """Return the mistakes that a row may be."""
    (family, source), regions = sources[row.source], walk.suspect.all_regions
    return [Mistake(family, regions[j].words, row.coefficient, source.cost + regions[j].cost) for j in row.regions]
