"""The cause: the fewest changes after which nothing but noise is left, in as many of the wrong requests as can be.

    nearest atoms, by the linear picture -> each of them exactly -> the simplest that leaves noise in most requests

If one change is not enough a second is looked for in what it leaves, and a third. Whatever leaves more than noise is no
cause: it has no name, only a share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...arrays import Array, Float
from .exact import ExactFit, at, fit
from .pursuit import BIT, Atom, nearest, vector
from .suspect import Suspect

TERMS = 3  # of one cause; more: anything can be explained by enough of them
ROUND = (-1.0, 1.0, -0.5, 0.5, 2.0, -2.0)  # coefficients that speak for themselves
ALIKE = 0.02  # relative; coefficients that differ by less are one
HOPELESS = 20.0  # times the limit: what leaves more, and a quarter of the error, is not fitted further
FEWER = 8.0  # times less must be left by each further change


@dataclass(frozen=True, eq=False)
class Cause:
    """Changes that explain some requests."""

    atoms: tuple[Atom, ...]
    fits: tuple[ExactFit, ...]  # of each suspect
    explained: tuple[bool, ...]  # does it leave noise there?

    @property
    def coefficients(self) -> np.ndarray:
        """Of each explained suspect, or of all if there is none, [suspects, atoms]."""
        good = [one for one, explained in zip(self.fits, self.explained, strict=True) if explained]
        return np.array([one.coefficients for one in good or self.fits])

    @cached_property
    def common(self) -> tuple[float | None, ...]:
        """Each atom's coefficient, if all explained requests have the same; else None."""
        common = []
        for column in self.coefficients.T:
            middle = float(np.median(column))
            agree = bool((np.abs(column - middle) <= ALIKE * max(abs(middle), 0.1)).all())
            nice = next((value for value in ROUND if abs(value - middle) <= ALIKE), middle)
            common.append(nice if agree else None)
        return tuple(common)


def find(suspects: Sequence[Suspect], limit: float) -> Cause | None:
    """Return the cause of most of these requests, or None. limit: the ratio from which on a row is no noise."""
    atoms: tuple[Atom, ...] = ()
    errors = [suspect.adjoint.along(suspect.raw.error) for suspect in suspects]
    before = float("inf")
    for _ in range(TERMS):
        best: tuple[tuple[float, ...], Cause] | None = None
        for ranked in nearest(suspects, errors, atoms):
            tried = (*atoms, ranked.atom)
            cause = _tried(suspects, tried, limit)
            score = _score(suspects, cause, ranked.cost)
            if best is None or score < best[0]:
                best = (score, cause)
            if all(cause.explained) and score[1] <= ranked.cost:
                break  # they come in the order of what they leave and cost
        if best is None:
            return None
        cause = best[1]
        if any(cause.explained):
            return cause
        residual = float(np.median([one.worst for one in cause.fits]))
        if not residual * FEWER < before:
            return None
        before, atoms = residual, cause.atoms
        errors = [suspect.adjoint.along(one.residual) for suspect, one in zip(suspects, cause.fits, strict=True)]
    return None


def _tried(suspects: Sequence[Suspect], atoms: tuple[Atom, ...], limit: float) -> Cause:
    """Fit the atoms in every request, from where the linear picture sees them; where that is far off, look once."""
    fits = []
    for suspect in suspects:
        start = _linear(suspect, atoms)
        first = at(suspect, atoms, start)
        hopeless = first.worst > HOPELESS * max(limit, 1e-3 * suspect.ratio) and first.worst > suspect.ratio / 4
        fits.append(first if hopeless or first.worst < limit / 2 else fit(suspect, atoms, start))
    return Cause(atoms, tuple(fits), tuple(one.worst < limit for one in fits))


def _linear(suspect: Suspect, atoms: Sequence[Atom]) -> Float[Array, " atoms"]:
    """Return the coefficients that the linear picture gives these atoms in one request."""
    columns = np.stack([vector(suspect, atom) for atom in atoms], axis=1)
    return np.linalg.lstsq(columns, suspect.adjoint.along(suspect.raw.error), rcond=None)[0]


def _score(suspects: Sequence[Suspect], cause: Cause, cost: float) -> tuple[float, ...]:
    """Fewer unexplained requests first, then coefficients that say something, then what is simple."""
    explained = sum(cause.explained)
    crooked = sum(_crooked(_kind(suspects, atom), value) for atom, value in zip(cause.atoms, cause.common, strict=True))
    if not explained:
        residual = float(np.median([np.log(one.worst) for one in cause.fits]))
        return 0.0, residual + BIT * (cost + crooked)
    return -float(explained), cost + crooked


def _crooked(kind: str, coefficient: float | None) -> float:
    """Bits. The own delta may be there in any measure; another one in its place only once, and whole."""
    if kind in ("own", "part"):
        return 0.0 if coefficient in ROUND[:2] else 4.0 if coefficient is not None else 6.0
    return 0.0 if coefficient == 1 else 12.0


def _kind(suspects: Sequence[Suspect], atom: Atom) -> str:
    return next(one.sources[atom.source].kind for one in suspects if atom.source in one.sources)
