"""Mistakes made at one token of a request, as one batch of copies of that token: what does each leave of its row?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array, Float
from ..noise.rms import rms
from .mix_up import Point, Source
from .walk import Copy, Term, Walk

Given = tuple[Source, Array, float]  # what is wrong besides: a source, its modules, how often


@dataclass(frozen=True, eq=False)
class Row:
    """One mistake to be tried."""

    source: int
    at: Array  # its modules that have an effect here
    coefficient: float
    regions: Sequence[int]  # all that are these modules here
    bits: float = 0.0  # of the source and the plainest of these


def presence(walk: Walk, before: Sequence[int], tokens: int, sources: Sequence[Source]) -> Array:
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


def ratios_of(
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
    # Those of one source one after another: in each pass a source is computed once for all of its copies.
    order = np.argsort([row.source for row in rows], kind="stable")
    ratios = np.zeros(len(rows))
    ratios[order] = rms(residuals(walk, before, tokens, sources, [(rows[i],) for i in order], given), axis=1)
    return ratios


def residuals(
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
