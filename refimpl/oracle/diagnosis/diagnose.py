"""Which bug is it? The mutants ranked by how well they explain the engine's numbers.

A bug is named when its coefficient is 1 and what is left of the error is noise: the noise of the mutant's own honest
runs, because a wrong answer is not rounded like a right one. Mutants that these cases cannot tell apart are one
diagnosis, with a case that would separate them. Where a scale is wrong, the factor is fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..bugs import Mutant
from ..bugs.registry import scope_of
from ..cases.case import Case
from ..cases.testbed import Testbed
from ..noise.ensemble import Member
from ..noise.measure import Sample
from ..noise.verdict import Thresholds
from .candidate import Candidate, evaluate, explains, unexplained_fraction
from .own_noise import residual_of_own_noise
from .projection import Projection, confined, limit, project, remaining, without
from .scale_fit import fit_scales
from .separate import separating_case

MANY = 6  # candidates whose own noise is computed; larger: slower, a bug with much noise is named more often
SCOPES = 2  # in which a scale is fitted; larger: slower, and factors of scopes that the error hardly points to
FARTHER = 1e3  # a candidate whose residual exceeds the best one's by this factor is not re-evaluated with its own noise
SIMPLER = 1.1  # prefer one factor for all adapters unless one for each reduces the residual by more than 10 %
NEAR = 0.5  # a bug that explains nothing is reported as the nearest if it leaves at most this share of the error
ABOUT_ONE = (0.3, 3.0)  # and if this is where its coefficient lies: 35 times a bug is not that bug
LOUD = 10.0  # units of the truth's noise; an error above it is explained by nothing that leaves more than LITTLE of it
LITTLE = 0.2  # as a share; larger: bugs that round are named for what they only resemble


@dataclass(frozen=True)
class Finding:
    """One mutant, or a class of them that the cases cannot tell apart, beside the engine's numbers."""

    name: str
    family: str
    what: str
    links: tuple[str, ...]
    projection: Projection
    residual: float  # what is left of the error, in units of noise: its own where it explains all, else the truth's
    explains: bool  # coefficient 1, and nothing but noise is left
    only: str = ""  # the adapter that it is confined to, if it is
    also: tuple[str, ...] = ()  # mutants that do the same on these cases
    separated_by: str = ""  # a case on which they differ
    next_best: tuple[str, float] = ("", float("inf"))  # the next mutant, and what it leaves
    mutant: Mutant | None = None  # the same, to be run: a fitted factor is in no list of mutants

    @property
    def evidence(self) -> str:
        """One line for people."""
        coefficient = f"c = {self.projection.coefficient:.3g} ± {self.projection.sigma:.1g}"
        only = f", only for adapter {self.only}" if self.only else ""
        after = f"; next best {self.next_best[0]} {self.next_best[1]:.3g} x" if self.next_best[0] else ""
        return f"{coefficient}, residual {self.residual:.3g} x noise{only}{after}"


@dataclass(frozen=True, eq=False)
class Graded:
    """A candidate with its residual in units of its own noise."""

    candidate: Candidate
    residual: float


def diagnose(
    samples: Sequence[Sample],
    testbed: Testbed,
    candidates: Sequence[Candidate],
    members: Sequence[Member],
    thresholds: Thresholds,
    elsewhere: Sequence[tuple[Case, Testbed]] = (),
) -> list[Finding]:
    """Return the best explanations, best first; those that explain everything before the others. [] if none is near.

    elsewhere: cases to look through for one that separates mutants which these samples do not.

    Four steps. Candidates get their variants (a fitted factor, one adapter alone). The MANY nearest at c = 1 are graded
    anew in their own noise, since a bug that makes logits ten times larger has ten times the noise. A graded one
    explains the error if its residual is no larger than a whole honest request may be, its coefficient is 1 within six
    sigma, and it stands out of chance: 7.5 sigma among 50 directions. The first of these is the finding."""
    error = remaining(candidates[0].terms, bug=False) if candidates else 0.0
    ranked = _with_variants(samples, testbed, candidates)
    graded = _graded(samples, testbed, ranked, members, error)
    needed = limit(len(ranked))
    explaining = [one for one in graded if _explains_all(one, thresholds, needed, error)]
    if not explaining:
        return [_finding(one, False) for one in graded if is_near(one.candidate, error)][:3]
    best, *same = _simplest_first(explaining)
    same = [one for one in same if not (one.candidate.mutant.scales and best.candidate.mutant.scales)]
    mutants = [one.candidate.mutant for one in (best, *same)]
    return [
        replace(
            _finding(best, True),
            also=tuple(mutant.name for mutant in mutants[1:]),
            separated_by=separating_case(mutants, elsewhere) if same else "",
            next_best=_next_best(ranked, explaining, needed, error),
        )
    ]


def _with_variants(samples: Sequence[Sample], testbed: Testbed, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that these cases exercise, with fitted scales and confined ones, by what they leave."""
    exercised = [one for one in candidates if one.projection.strength > 0 and not one.projection.broken]
    exercised += _fitted_scales(samples, testbed, exercised)
    exercised += [variant for one in list(exercised) if (variant := _confined(one))]
    return sorted(exercised, key=lambda one: one.residual)


def _graded(
    samples: Sequence[Sample], testbed: Testbed, ranked: Sequence[Candidate], members: Sequence[Member], error: float
) -> list[Graded]:
    """Return the nearest, each with its residual in units of its own noise; none that leaves as much as no bug does."""
    closest = [one for one in ranked[:MANY] if one.residual < min(error, FARTHER * ranked[0].residual)]
    return [Graded(one, residual_of_own_noise(samples, testbed, one, members)) for one in closest]


def _explains_all(one: Graded, thresholds: Thresholds, needed: float, error: float) -> bool:
    """In its own noise, a bug that rounds would explain any error: its noise is thousands of times larger. So what is
    loud must also be gone in units of the truth's."""
    projection = one.candidate.projection
    if error > LOUD and not is_near(one.candidate, error, LITTLE):
        return False
    return (
        one.residual <= _tolerated(thresholds)
        and _is_one(projection, max(one.residual, one.candidate.residual))
        and abs(projection.score) > needed
    )


def is_near(candidate: Candidate, error: float, share: float = NEAR) -> bool:
    """Does it leave less than this share of the error, about as large as the bug itself? Both are in units of the
    truth's noise. In units of its own, a bug that rounds, whose noise is thousands of times larger, would be near to
    all."""
    low, high = ABOUT_ONE
    return candidate.residual < share * error and low < candidate.projection.coefficient < high


def _simplest_first(explaining: Sequence[Graded]) -> list[Graded]:
    """Sort by: leaves at most 10 % more than the best, and is no factor.

    A bug that says what went wrong comes before a factor that was fitted to it: with 0 for "not applied" the fit is
    never worse, and it says less."""
    least = min(one.residual for one in explaining)
    return sorted(explaining, key=lambda one: (one.residual > SIMPLER * least, one.candidate.mutant.scales))


def _next_best(
    ranked: Sequence[Candidate], explaining: Sequence[Graded], needed: float, error: float
) -> tuple[str, float]:
    """Return the nearest that does not explain the error, and what it leaves; or that no bug leaves less."""
    # With one of them its variants, at some adapters only.
    explained = {one.candidate.mutant.name for one in explaining}
    others = [one for one in ranked if one.mutant.name not in explained and abs(one.projection.score) > needed]
    if others and others[0].residual < error:
        return others[0].mutant.name, others[0].residual
    return "no bug at all", error


def _finding(one: Graded, explains_all: bool) -> Finding:
    mutant, candidate = one.candidate.mutant, one.candidate
    return Finding(
        mutant.name,
        mutant.family,
        mutant.what,
        mutant.links,
        candidate.projection,
        one.residual if explains_all else candidate.residual,
        explains_all,
        candidate.only,
        mutant=mutant,
    )


def _tolerated(thresholds: Thresholds) -> float:
    """Return the largest rms that a whole request of honest noise may have."""
    return float(np.exp(thresholds.whole_level + thresholds.fail_score * thresholds.whole_spread))


def _is_one(projection: Projection, residual: float) -> bool:
    """Is c = 1, as far as the noise lets it be known?"""
    return abs(projection.coefficient - 1) <= 6 * projection.sigma * max(residual, 1.0)


# Variants of a bug: the factor of a scale, the adapter that is hit.


def _fitted_scales(samples: Sequence[Sample], testbed: Testbed, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the factors, in the scopes that the error points to most: one for all adapters, and one for each. None of
    them where a bug without a factor explains it all."""
    if any(explains(one) for one in candidates if not one.mutant.scales):
        return []
    likely = sorted((one for one in candidates if one.mutant.scales), key=unexplained_fraction)
    scopes = list({scope_of(one.mutant.name, testbed): None for one in likely})[:SCOPES]
    fitted: list[Candidate] = []
    for scope in scopes:
        fits = [fit_scales(samples, testbed, scope, each) for each in (False, True)]
        evaluated = [evaluate(*fit) for fit in fits if fit is not None]
        simple = len(evaluated) == 2 and evaluated[0].residual <= SIMPLER * evaluated[1].residual
        fitted += [one for one in (evaluated[:1] if simple else evaluated) if one.projection.strength > 0]
    return fitted


def _confined(candidate: Candidate) -> Candidate | None:
    """Return the same bug in the requests of some adapters only, if the others have nothing of it. Not in a single
    request: that says nothing of its adapter."""
    names = sorted(
        {term.adapter for terms in candidate.terms for term in terms if term is not None and term.adapter is not None}
    )
    alone = {name: project(confined(candidate.terms, name)) for name in names}
    hit = {name: projection for name, projection in alone.items() if projection.strength > 0}
    full = [
        name for name, projection in hit.items() if _is_one(projection, 1.0) and abs(projection.score) > limit(len(hit))
    ]
    of_them = [term for terms in candidate.terms for term in terms if term is not None and term.adapter in full]
    if len(of_them) < 2 or len(full) == len(hit):
        return None
    by_case = [
        [term if term is None or term.adapter in full else without(term) for term in terms] for terms in candidate.terms
    ]
    only = " and ".join(full)
    return replace(candidate, terms=by_case, projection=project(by_case), residual=remaining(by_case), only=only)
