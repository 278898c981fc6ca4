"""The causes that are possible: the fewest changes after which nothing but noise is left, in as many of the wrong
requests as can be.

    nearest atoms, by the linear picture -> each of them exactly -> those that leave noise in some of the requests

One request seldom tells two causes apart, so all that explain it as well are returned; grade.py holds each against
every request of the campaign. If one change is not enough a second is looked for in what it leaves, and a third: two
bugs may meet in one request, or each have requests of its own, where the other's coefficient is 0. Whatever leaves more
than noise is no cause.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ...arrays import Array, Float
from ..diagnosis.clock import Clock
from .exact import INVISIBLE, ExactFit, Try, at, fit
from .mix_up import Source
from .pursuit import BIT, Atom, nearest, resolved, vector
from .suspect import Suspect

TERMS = 3  # of one cause; more: anything can be explained by enough of them
ROUND = (-1.0, 1.0, -0.5, 0.5, 2.0, -2.0)  # coefficients that speak for themselves
ALIKE = 0.02  # relative; coefficients that differ by less are one
NEAR_ONE = 0.1  # what stands instead of the own delta does so whole: such a coefficient is 1, and must explain as 1
ABSENT = 0.02  # a smaller coefficient is of a change that this request does not have
LARGEST = 100.0  # a larger coefficient is of two changes that take back one another
HOPELESS = 20.0  # times the limit: what leaves more, and a quarter of the error, is not fitted further
FEWER = 8.0  # times less must be left by each further change
CANDIDATES = 10  # causes that are held against every request; larger: slower
ALIKE_HERE = 24  # regions that are tried beside the best cause's; larger: slower
REGIONS = 3  # of the same sources in them
AS_NEAR = 1.0  # per request, of the logarithm of the variance that is left; larger: more rivals of a cause are tried


@dataclass(frozen=True, eq=False)
class Cause:
    """Changes that explain some requests."""

    atoms: tuple[Atom, ...]
    sources: tuple[Source, ...]  # of the atoms
    costs: tuple[float, ...]  # bits that it takes to say each of them
    fits: tuple[ExactFit, ...]  # of each suspect
    explained: tuple[bool, ...]  # does it leave noise there?
    given: tuple[float | None, ...] = ()  # coefficients of its first changes, if other requests have told them

    @property
    def kinds(self) -> tuple[str, ...]:
        """As in Source."""
        return tuple(source.kind for source in self.sources)

    @property
    def coefficients(self) -> np.ndarray:
        """Of each explained suspect, or of all if there is none, [suspects, atoms]."""
        good = [one for one, explained in zip(self.fits, self.explained, strict=True) if explained]
        return np.array([one.coefficients for one in good or self.fits])

    @cached_property
    def common(self) -> tuple[float | None, ...]:
        """Each atom's coefficient, if all explained requests that have the change have the same; else None."""
        columns = list(zip(self.coefficients.T, self.kinds, strict=True))[len(self.given) :]
        return (*self.given, *(common_value(column, kind) for column, kind in columns))

    @property
    def chooses(self) -> bool:
        """Is one of its sources another one in each request?"""
        return any(source.members for source in self.sources)

    @property
    def crooked(self) -> float:
        """Bits of coefficients that do not speak for themselves."""
        return sum(_crooked(kind, value) for kind, value in zip(self.kinds, self.common, strict=True))

    @property
    def is_part_of_a_bug(self) -> bool:
        """Is a known bug in it, at some modules or for some tokens? Then it is another one that does the same there."""
        parts = zip(self.kinds, self.atoms, strict=True)
        return any(kind == "bug" and bool(atom.modules or atom.tokens) for kind, atom in parts)

    def without_first(self) -> "Cause":
        """Return it with its first change left out; its fits are still those of all."""
        return replace(self, atoms=self.atoms[1:], sources=self.sources[1:], costs=self.costs[1:])

    @property
    def may_be_said(self) -> bool:
        """Do its coefficients say something? The own delta may be there in any measure, and what is added, too; what
        stands in its place does so whole. Beside other changes a negative one only makes up for what they are not."""
        alone = len(self.atoms) == 1
        return bool((np.abs(self.coefficients) < LARGEST).all()) and all(
            kind in ("own", "part")
            or (value is not None and ((kind == "added" and (alone or value > 0)) or value == 1))
            for kind, value in zip(self.kinds, self.common, strict=True)
        )


def common_value(coefficients: Float[Array, " requests"], kind: str) -> float | None:
    """Return the one value of these coefficients, those of absent changes left out; None if they differ."""
    present = coefficients[np.abs(coefficients) > ABSENT]
    if not len(present):
        return 0.0
    if kind in ("instead", "bug") and (np.abs(present - 1) < NEAR_ONE).all():
        return 1.0
    middle = float(np.median(present))
    agree = bool((np.abs(present - middle) <= ALIKE * max(abs(middle), 0.1)).all())
    nice = next((value for value in ROUND if abs(value - middle) <= ALIKE), middle)
    return nice if agree else None


def find(
    suspects: Sequence[Suspect], limit: float, start: Cause | None = None, clock: Clock | None = None
) -> list[Cause]:
    """Return causes of some of these requests, those of most of them first. limit: the ratio from which on a row is no
    noise. start: what explains other requests already, to which more is added. clock: when to look for no more."""
    raw_errors = [suspect.adjoint.along(suspect.raw.error) for suspect in suspects]
    best = None
    if start is not None:
        (first,) = _at_once(suspects, [start.atoms])
        best = _tried(suspects, start.atoms, start.costs, limit, first, start.sources, start.common)
    causes: list[Cause] = []
    before = float("inf")
    for _ in range(TERMS - (0 if best is None else len(best.atoms))):
        if causes and clock is not None and clock.is_late("one more change"):
            break
        tried = _with_one_more(suspects, _remaining(suspects, best) or raw_errors, best, limit)
        if not tried:
            break
        if clock is not None and not any(tried[0].explained) and clock.is_late("more changes than one"):
            break
        if start is None and len(tried[0].atoms) > 1 and not all(tried[0].explained):
            # The first was chosen while the others were not known: is there a better one beside them?
            tried += _with_one_more(suspects, raw_errors, tried[0].without_first(), limit)
            tried.sort(key=_score)
        causes += [cause for cause in tried if any(cause.explained)]
        best = tried[0]
        if all(best.explained):
            break
        residual = float(np.median([one.worst for one in best.fits if not one.worst < limit]))
        if not any(best.explained) and not residual * FEWER < before:
            break
        before = residual
    said = [cause for cause in causes if cause.may_be_said and not any(_undoes(one, cause) for one in suspects)]
    chosen = _different(sorted(said, key=_score))[:CANDIDATES]
    return chosen + (_alike_here(suspects, chosen[0]) if chosen else [])


def _alike_here(suspects: Sequence[Suspect], cause: Cause) -> list[Cause]:
    """Return a cause of one change with the other regions of tokens that are the same tokens in all of these requests:
    which of them it is other requests tell."""
    if len(cause.atoms) > 1 or cause.chooses:
        return []
    (atom,) = cause.atoms
    words = [region.words for region in suspects[0].token_regions]
    costs = {region.words: region.cost for region in suspects[0].token_regions}
    alike = [
        one
        for one in words
        if one != atom.tokens and all((suspect.rows(one) == suspect.rows(atom.tokens)).all() for suspect in suspects)
    ]
    more = sorted(alike, key=lambda one: costs[one])[:ALIKE_HERE]
    cost = cause.costs[0] - costs[atom.tokens]
    return [replace(cause, atoms=(replace(atom, tokens=one),), costs=(cost + costs[one],)) for one in more]


def _different(causes: Sequence[Cause]) -> list[Cause]:
    """Return few of the same sources: their regions are nearly the same. Nor many choices: each is many causes."""
    count: Counter[tuple[str, ...]] = Counter()
    kept = []
    for cause in causes:
        sources = ("a choice",) if cause.chooses else tuple(atom.source for atom in cause.atoms)
        count[sources] += 1
        if count[sources] <= REGIONS:
            kept.append(cause)
    return kept


def _undoes(suspect: Suspect, cause: Cause) -> bool:
    """Does one change of a cause take back another where both are? Then neither is what the engine does: the region of
    the first is another one, that has no words here."""
    for i, j in itertools.combinations(range(len(cause.atoms)), 2):
        one, other = cause.atoms[i], cause.atoms[j]
        values = [cause.common[k] for k in (i, j)]
        if one.source != other.source or None in values or abs(sum(value or 0.0 for value in values)) > ALIKE:
            continue
        at_both = suspect.members(one.modules) & suspect.members(other.modules)
        if at_both and (suspect.rows(one.tokens) & suspect.rows(other.tokens)).any():
            return True
    return False


def _remaining(suspects: Sequence[Suspect], cause: Cause | None) -> list[Float[Array, " K"]]:
    """Return what a cause leaves of each error, along each direction; [] if there is none."""
    fits = [] if cause is None else cause.fits
    return [suspect.adjoint.along(one.residual) for suspect, one in zip(suspects, fits, strict=bool(fits))]


def _with_one_more(
    suspects: Sequence[Suspect], errors: Sequence[Float[Array, " K"]], cause: Cause | None, limit: float
) -> list[Cause]:
    """Return a cause with each of the nearest atoms beside its own, best first."""
    atoms, costs, given = ((), (), ()) if cause is None else (cause.atoms, cause.costs, cause.given)
    sources = () if cause is None else cause.sources
    tried: list[Cause] = []
    near_enough = float("inf")
    near = nearest(suspects, errors, atoms)
    firsts = _at_once(suspects, [(*atoms, ranked.atom) for ranked in near])
    for ranked, first in zip(near, firsts, strict=True):
        if ranked.variance > near_enough:
            continue
        of_atoms = (*sources, _source(suspects, ranked.atom))
        one = _tried(suspects, (*atoms, ranked.atom), (*costs, ranked.cost), limit, first, of_atoms, given)
        tried.append(one)
        if all(one.explained) and not one.crooked:  # nothing is better; but some may be as good
            near_enough = min(near_enough, ranked.variance + AS_NEAR * len(suspects))
    return sorted(tried, key=_score)


def _at_once(suspects: Sequence[Suspect], causes: Sequence[tuple[Atom, ...]]) -> list[tuple[ExactFit, ...]]:
    """Return each cause in each request, at the coefficients that the linear picture sees: of one request all in one
    pass."""
    if not causes:
        return []
    of_suspects = [at(suspect, [_linear(suspect, atoms) for atoms in causes]) for suspect in suspects]
    return list(zip(*of_suspects, strict=True))


def _tried(
    suspects: Sequence[Suspect],
    atoms: tuple[Atom, ...],
    costs: tuple[float, ...],
    limit: float,
    firsts: Sequence[ExactFit],
    sources: tuple[Source, ...],
    given: tuple[float | None, ...] = (),
) -> Cause:
    """Fit the atoms in every request, from where they were tried first; where that is far off, leave it there."""
    fits = []
    for suspect, first in zip(suspects, firsts, strict=True):
        hopeless = first.worst > HOPELESS * max(limit, 1e-3 * suspect.ratio) and first.worst > suspect.ratio / 4
        fits.append(first if hopeless or first.worst < limit / 2 else fit(suspect, _linear(suspect, atoms)[0], first))
    return Cause(atoms, sources, costs, tuple(fits), tuple(one.worst < limit for one in fits), given)


def _linear(suspect: Suspect, atoms: Sequence[Atom]) -> Try:
    """Return these atoms, none of them a choice, and the coefficients that the linear picture gives them in one
    request."""
    error = suspect.adjoint.along(suspect.raw.error)
    here = resolved(suspect, atoms, error)
    columns = np.stack([vector(suspect, atom) for atom in here], axis=1)
    return here, np.linalg.lstsq(columns, error, rcond=INVISIBLE)[0]


def _score(cause: Cause) -> tuple[float, ...]:
    """Fewer unexplained requests first, then coefficients that say something, then what is simple."""
    explained = sum(cause.explained)
    bits = sum(cause.costs) + cause.crooked
    if not explained:
        residual = float(np.median([np.log(one.worst) for one in cause.fits]))
        return 0.0, residual + BIT * bits
    return -float(explained), bits


def _crooked(kind: str, coefficient: float | None) -> float:
    """Bits. The own delta may be there in any measure; another one in its place only once, and whole."""
    if kind in ("own", "part"):
        return 0.0 if coefficient in ROUND[:2] else 4.0 if coefficient is not None else 6.0
    return 0.0 if coefficient == 1 else 12.0


def _source(suspects: Sequence[Suspect], atom: Atom) -> Source:
    return next(one.sources[atom.source] for one in suspects if atom.source in one.sources)
