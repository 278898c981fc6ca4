"""A pass means as much as its power: which bugs would these very cases, with this read-out, have shown?

Every mutant is put on top of what the engine answered. Either a row leaves the noise, or the coefficient does, or the
cases contain nothing that the mutant does otherwise, or it does something and stays within the noise.
"""

import math
from collections.abc import Sequence

from ..noise.verdict import Thresholds
from .candidate import Candidate, Terms
from .projection import limit

LOUD = 100.0  # times the ratio from which a row fails; larger: slower, more bugs are looked for in every case
DETECTED, UNDETECTABLE, NOT_EXERCISED = "detected", "undetectable", "not exercised"


def power(candidates: Sequence[Candidate], thresholds: Thresholds) -> dict[str, str]:
    """Return DETECTED, UNDETECTABLE or NOT_EXERCISED for each mutant, by name."""
    needed = limit(sum(one.projection.strength > 0 for one in candidates))
    return {one.mutant.name: _power_of(one, thresholds, needed) for one in candidates}


def _power_of(candidate: Candidate, thresholds: Thresholds, needed: float) -> str:
    projection = candidate.projection
    if not projection.exercised:
        return NOT_EXERCISED
    fails = injected(candidate.terms) >= thresholds.ratio
    return DETECTED if fails or not projection.strength <= needed else UNDETECTABLE


def share_seen(candidate: Candidate, thresholds: Thresholds, needed: float) -> float:
    """Return how much of the bug would have been enough for a row to fail or, where that is less, to be seen below the
    noise; infinity for NaN, which has no share. needed: the score that no chance reaches."""
    row = injected(candidate.terms)
    of_row, below = thresholds.ratio / row if 0 < row < math.inf else math.inf, needed * candidate.projection.sigma
    return of_row if is_loud(candidate.terms, thresholds) else min(of_row, below)


def is_loud(by_case: Terms, thresholds: Thresholds) -> bool:
    """Would a row have failed with as little as a hundredth of the bug?"""
    return injected(by_case) >= LOUD * thresholds.ratio


def injected(by_case: Terms) -> float:
    """Return the worst row's ratio, had the engine this bug as well; infinity for NaN. 0 where nobody looked for it."""
    terms = [term for terms in by_case for term in terms if term is not None]
    return max((math.inf if term.broken or math.isnan(term.injected) else term.injected for term in terms), default=0.0)
