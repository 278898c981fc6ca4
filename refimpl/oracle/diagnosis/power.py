"""A pass means as much as its power: which bugs would these very cases, with this read-out, have shown?

Every mutant is put on top of what the engine answered. Either a row leaves the noise, or the coefficient does, or the
cases contain nothing that the mutant does otherwise, or it does something and stays within the noise.
"""

from collections.abc import Sequence

from ..noise.verdict import Thresholds
from .candidate import Candidate
from .projection import limit

DETECTED, UNDETECTABLE, NOT_EXERCISED = "detected", "undetectable", "not exercised"


def power(candidates: Sequence[Candidate], thresholds: Thresholds) -> dict[str, str]:
    """Return DETECTED, UNDETECTABLE or NOT_EXERCISED for each mutant, by name."""
    needed = limit(sum(one.projection.strength > 0 for one in candidates))
    return {one.mutant.name: _power_of(one, thresholds, needed) for one in candidates}


def _power_of(candidate: Candidate, thresholds: Thresholds, needed: float) -> str:
    projection = candidate.projection
    if not projection.exercised:
        return NOT_EXERCISED
    worst = max((term.injected for terms in candidate.terms for term in terms if term is not None), default=0.0)
    detected = projection.broken or not worst < thresholds.ratio or not projection.strength <= needed
    return DETECTED if detected else UNDETECTABLE
