"""Every mistake that is known of, tried exactly at one token of a request: which of them leave noise in its row?"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array, Float
from ..noise.rms import rms
from .mix_up import Point, Source
from .walk import Copy, Term, Walk

ROUND = (-1.0, 1.0, -0.5, 0.5, -2.0, 2.0)  # how often the own delta is there too much
ROUNDS = 6  # of Newton's method
STEP = 1e-3  # of a factor, for its derivative
LARGEST = 100.0  # a larger factor is none
FIRSTS = 64  # mistakes that leave least alone, to each of which every other is added; larger: slower
NUMBERS_AT_MOST = 1 << 25  # of all effects at one token; larger: more memory
PAIRS = 512  # that are tried exactly; larger: slower
NAMES = 4  # of each of the two, where several are the same here; larger: slower
FLOPS = 10**11  # of all mistakes of so many bits at one token; of a larger base the plainest alone are tried
FEWEST = 32  # that are tried anyhow
PLAIN = 3.0  # bits of a source and its region, of which any measure is tried; larger: slower
FREE = 3.0  # bits of a factor that is another one for each adapter
COSTLY = (6.0, 8.0)  # bits of a source and its region together, tried after one another; larger: slower


@dataclass(frozen=True)
class Mistake:
    """A mix-up at some modules, c times. family: which adapter it is of may differ from token to token."""

    family: str
    modules: str
    coefficient: float | None  # None: another one for each adapter
    cost: float


Given = tuple[Source, Array, float]  # what is wrong besides: a source, its modules, how often


@dataclass(frozen=True, eq=False)
class Row:
    """One mistake to be tried."""

    source: int
    at: Array  # its modules that have an effect here
    coefficient: float
    regions: Sequence[int]  # all that are these modules here


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
) -> list[Mistake]:
    """Return those that leave noise in the row of the last of some tokens, made in all of them; simplest first.

    before: the blocks of the tokens before these. sources: each with its family. given: what is wrong there besides."""
    present = _presence(walk, before, tokens, [source for _, source in sources])
    plain = [source for _, source in sources]

    def good(rows: Sequence[Row]) -> list[Row]:
        rows = rows[: max(FEWEST, FLOPS // (walk.flops * tokens))]
        ratios = _ratios(walk, before, tokens, plain, rows, given)
        return [row for row, ratio in zip(rows, ratios, strict=True) if ratio < limit]

    fitting: list[Row] = []
    for least, most in zip((-1.0, *COSTLY), COSTLY, strict=False):
        fitting = good(_rows(walk, present, sources, least, most))
        if fitting:  # of the same sources at other modules this token may not tell
            of_found = present & np.isin(np.arange(len(sources)), [row.source for row in fitting])[:, None]
            fitting += good(_rows(walk, of_found, sources, most, COSTLY[-1]))
            break
    return sorted(dict.fromkeys(mistake for row in fitting for mistake in _named(walk, row, sources)), key=_bits)


def _bits(mistake: Mistake) -> float:
    return mistake.cost


def pairs(
    walk: Walk, before: Sequence[int], sources: Sequence[tuple[str, Source]], limit: float
) -> list[tuple[Mistake, Mistake]]:
    """Return pairs of mistakes that leave noise in the row of the token behind some blocks, together; simplest first.

    What each does alone is known exactly. In a quiet request (quiet.py) effects add up, so that the sums of two of them
    that come nearest to the error are few; those are tried."""
    plain = [source for _, source in sources]
    rows = _rows(walk, _presence(walk, before, 1, plain), sources, -1.0, COSTLY[-1])
    rows = rows[: min(FLOPS // walk.flops, NUMBERS_AT_MOST // walk.raw.vocab)]
    if not rows:
        return []
    error = _residuals(walk, before, 1, plain, [()], [])
    leaves = _residuals(walk, before, 1, plain, [(row,) for row in rows], [])
    effects = error - leaves
    first = np.argsort(np.square(leaves).sum(axis=1), kind="stable")[:FIRSTS]
    together = np.square(leaves[first]).sum(axis=1)[:, None] - 2 * leaves[first] @ effects.T
    together += np.square(effects).sum(axis=1)[None]
    nearest = np.argsort(together, axis=None, kind="stable")[:PAIRS]
    chosen = [(rows[first[i]], rows[j]) for i, j in zip(*np.unravel_index(nearest, together.shape), strict=True)]
    ratios = rms(_residuals(walk, before, 1, plain, chosen, []), axis=1)
    fitting = []
    for n in np.flatnonzero(ratios < limit):
        for one, other in itertools.product(*(_named(walk, row, sources)[:NAMES] for row in chosen[n])):
            fitting.append((min(one, other, key=_order), max(one, other, key=_order)))
    return sorted(dict.fromkeys(fitting), key=lambda pair: pair[0].cost + pair[1].cost)


def _order(mistake: Mistake) -> tuple[str, str]:
    return mistake.family, mistake.modules


def _rows(walk: Walk, present: Array, sources: Sequence[tuple[str, Source]], least: float, most: float) -> list[Row]:
    """Return every mistake of so many bits; those that are the same here are one, of as many bits as the plainest."""
    regions, rows = walk.suspect.module_regions, list[Row]()
    for i, (_, source) in enumerate(sources):
        sets: dict[bytes, list[int]] = {}
        for j, region in enumerate(regions):
            if source.kind == "bug" and region.words:  # a known bug is what it is: everywhere
                continue
            if source.cost + region.cost <= COSTLY[-1] and (here := region.members & present[i]).any():
                sets.setdefault(here.tobytes(), []).append(j)
        for same in sets.values():
            if not least < source.cost + min(regions[j].cost for j in same) <= most:
                continue
            rows += [Row(i, regions[same[0]].members & present[i], times, same) for times in coefficients_of(source)]
    return sorted(rows, key=lambda row: sources[row.source][1].cost + min(regions[j].cost for j in row.regions))


def _named(walk: Walk, row: Row, sources: Sequence[tuple[str, Source]]) -> list[Mistake]:
    """Return the mistakes that a row may be."""
    (family, source), regions = sources[row.source], walk.suspect.module_regions
    return [Mistake(family, regions[j].words, row.coefficient, source.cost + regions[j].cost) for j in row.regions]


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
        residuals = _residuals(walk, before, 1, [source], [(row,) for row in rows], given)
        here, moved = residuals[: len(at)], residuals[len(at) :]
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
        (present,) = _presence(walk, before, 1, [source])
        for j, region in enumerate(regions):
            if source.cost + region.cost <= PLAIN and (here := region.members & present).any():
                sets.setdefault(here.tobytes(), []).append(j)
        same = list(sets.values())
        values = factor(walk, before, source, [regions[some[0]].members & present for some in same], limit, given)
        for some, value in zip(same, values, strict=True):
            if value is not None and abs(value) > 0:
                fitting += [Mistake(family, regions[j].words, None, source.cost + regions[j].cost + FREE) for j in some]
    return sorted(fitting, key=lambda one: one.cost)


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
    ratios = _ratios(walk, before, 1, [source for _, source in sources], [row for _, row in rows], given)
    return list(dict.fromkeys(mistake for (mistake, _), ratio in zip(rows, ratios, strict=True) if ratio < limit))


def _presence(walk: Walk, before: Sequence[int], tokens: int, sources: Sequence[Source]) -> Array:
    """Return at which modules each source does something to these tokens, [sources, modules]."""
    observed = np.zeros((len(sources), len(walk.modules)), bool)
    everywhere = np.ones((tokens, len(walk.modules)), bool)
    number = {module: n for n, module in enumerate(walk.modules)}

    def probe(i: int, source: Source) -> Term:
        def delta(point: Point) -> None:
            value = source.delta(point)
            observed[i, number[point.module]] = value is not None and bool(value.any())

        return Term(Source(source.key, "", delta), np.arange(tokens), everywhere, np.zeros(tokens))

    blocks = walk.new_blocks(tokens, set(before))
    walk.compute([Copy(len(before), before, blocks)], [probe(i, source) for i, source in enumerate(sources)])
    return observed


def _ratios(
    walk: Walk,
    before: Sequence[int],
    tokens: int,
    sources: Sequence[Source],
    rows: Sequence[Row],
    given: Sequence[Given],
) -> Float[Array, " rows"]:
    """Return what each leaves of the last token's row, in noise units."""
    if not rows:
        return np.zeros(0)
    return rms(_residuals(walk, before, tokens, sources, [(row,) for row in rows], given), axis=1)


def _residuals(
    walk: Walk,
    before: Sequence[int],
    tokens: int,
    sources: Sequence[Source],
    copies: Sequence[Sequence[Row]],
    given: Sequence[Given],
) -> Float[Array, "copies vocab"]:
    """Return what the mistakes of each copy leave of the last token's row, scaled so that its rms is in noise units."""
    at_once = max(1, walk.at_once // tokens)
    parts = []
    for start in range(0, len(copies), at_once):
        some = copies[start : start + at_once]
        blocks = np.array(walk.new_blocks(len(some) * tokens, set(before))).reshape(len(some), tokens)
        of_copy = np.arange(len(some) * tokens).reshape(len(some), tokens)
        by_source: dict[tuple[int, int], list[tuple[int, Row]]] = {}
        for n, mistakes_of_copy in enumerate(some):
            for place, row in enumerate(mistakes_of_copy):
                by_source.setdefault((row.source, place), []).append((n, row))
        terms = [
            Term(
                sources[i],
                of_copy[[n for n, _ in rows]].ravel(),
                np.array([row.at for _, row in rows]).repeat(tokens, axis=0),
                np.array([row.coefficient for _, row in rows]).repeat(tokens),
            )
            for (i, _), rows in by_source.items()
        ]
        count = of_copy.size
        terms += [
            Term(one, np.arange(count), np.tile(at, (count, 1)), np.full(count, times)) for one, at, times in given
        ]
        logits = walk.compute([Copy(len(before), before, own_blocks.tolist()) for own_blocks in blocks], terms)
        last = np.full(len(some), len(before) + tokens - 1)
        parts.append(walk.residuals(last, logits[of_copy[:, -1]]))
    return np.concatenate(parts) if parts else np.zeros((0, 1))
