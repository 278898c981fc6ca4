"""A pass means as much as its power: which bugs would these very cases, with this read-out, have shown?

Every mutant is put on top of what the engine answered. Either a row leaves the noise, or the coefficient does, or the
cases contain nothing that the mutant does otherwise, or it is there and cannot be seen.
"""

from collections.abc import Sequence

from ..noise.verdict import Thresholds
from .diagnose import Candidate
from .projection import limit

DETECTED, UNDETECTABLE, NOT_EXERCISED = "detected", "undetectable", "not exercised"


def power(looked: Sequence[Candidate], known: Thresholds) -> dict[str, str]:
    """Name of the mutant -> one of the three."""
    needed = limit(sum(x.seen.strength > 0 for x in looked))
    return {x.mutant.name: _of(x, known, needed) for x in looked}


def _of(x: Candidate, known: Thresholds, needed: float) -> str:
    if not x.seen.exercised:
        return NOT_EXERCISED
    worst = max((p.injected for ps in x.parts for p in ps if p is not None), default=0.0)
    seen = x.seen.broken or not worst < known.ratio or not x.seen.strength <= needed
    return DETECTED if seen else UNDETECTABLE
