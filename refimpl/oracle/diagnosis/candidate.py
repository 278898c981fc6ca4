"""A mutant beside the engine's errors: its projection, what it leaves of them, and whether that explains them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..bugs import Mutant
from .projection import Projection, ProjectionTerm, limit, project, remaining

Terms = list[list[ProjectionTerm | None]]  # of each sample, of each exchange that counts

EXPLAINED = 2.0  # units of noise that an explanation may leave; larger: bugs that are only near end the search
CLEARLY = 10.0  # an explanation must reduce the error at least tenfold; larger: bugs near the noise are not explained


@dataclass(frozen=True, eq=False)
class Candidate:
    """A mutant beside all samples."""

    mutant: Mutant
    terms: Terms
    projection: Projection
    residual: float  # rms of the error less the mutant's direction (c = 1), in units of noise
    only: str = ""  # the adapters that it is confined to, if it is


def evaluate(mutant: Mutant, terms: Terms, noisier: float = 1.0) -> Candidate:
    """Return the mutant with its terms of all samples added up. noisier: the engine's own noise over that of the honest
    runs."""
    return Candidate(mutant, terms, project(terms, noisier), remaining(terms))


def suspicious(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those whose coefficient is not 0: more of them in the error than chance would have, with as many tried."""
    tested = sum(one.projection.strength > 0 for one in candidates)
    return [one for one in candidates if not abs(one.projection.score) <= limit(tested)]


def in_words(hidden: Sequence[Candidate], cases: int) -> str:
    """Return the line that says which of the suspicious ones is clearest, and how clear."""
    worst = max(hidden, key=lambda one: abs(one.projection.score))
    projection = worst.projection
    return (
        f"below the noise: {worst.mutant.name} with c = {projection.coefficient:.3g} ± {projection.sigma:.1g} "
        f"({abs(projection.score):.0f} sigma) in {cases} cases"
    )


def explains(candidate: Candidate) -> bool:
    """Is what it leaves about noise, and far less than there was?

    Both are needed. A residual of 2 units alone is what any bug leaves of an engine that is nearly right; a tenfold
    reduction alone leaves 1,000 units of an error of 10,000, and then the engine has another bug, or one more."""
    before, after = _energy(candidate, "energy"), _energy(candidate, "residual_energy")
    return candidate.residual <= EXPLAINED and before >= CLEARLY**2 * after


def unexplained_fraction(candidate: Candidate) -> float:
    """Return the share of the error's energy that the direction does not hold, at whatever coefficient: 0 to 1.

    It is 1 - cos^2 of the angle between them. A factor that is not the mutant's own, or a bug in one module of many,
    leaves much at c = 1 and still points the right way."""
    energy, length, along = (_energy(candidate, name) for name in ("energy", "length", "along"))
    return 1.0 - along * along / (energy * length) if energy > 0 and length > 0 else 1.0


def _energy(candidate: Candidate, name: str) -> float:
    return sum(getattr(term, name) for terms in candidate.terms for term in terms if term is not None)
