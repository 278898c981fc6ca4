"""Possible causes, held against requests as they came: those that failed, and those that did not.

A cause of several changes may have each of them in other requests: they are tried together, then each alone, then two
by two. What passed has none of them; whether one would have shown there says for which requests it holds.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array, Float
from .condition import Fact
from .exact import ExactFit, at, fit
from .find import ABSENT, Cause
from .pursuit import Atom, options_of
from .suspect import Suspect, worst_ratio

ENOUGH = 2  # sources of a choice that are looked at where nothing is wrong: only whether they would show
VISIBLE = 3.0  # times the limit: a change that does less to a request is not looked for there


@dataclass(frozen=True, eq=False)
class Grade:
    """What one cause is to one request."""

    place: tuple[str, int, int]  # its case, run and index
    adapter: str | None
    failed: bool
    facts: dict[Fact, bool]
    error: float  # the worst row, in noise units
    residual: float  # what the cause leaves of it
    explained: bool
    coefficients: Float[Array, " atoms"]
    present: tuple[bool, ...]  # which of its changes the request has
    visible: tuple[bool, ...]  # which of them would show in it
    sources: tuple[str, ...] = ()  # of its changes, with what stands in place of a choice


def grades(
    suspect: Suspect,
    place: tuple[str, int, int],
    facts: dict[Fact, bool],
    failed: bool,
    causes: Sequence[Cause],
    limit: float,
) -> list[Grade]:
    """Hold causes against one request, all in one pass. limit: the ratio from which on a row is no noise."""
    starts = [np.array([1.0 if value is None else value for value in cause.common]) for cause in causes]
    subsets = [_subsets(len(start)) if failed else np.eye(len(start)) for start in starts]
    options = [options_of(suspect, cause.atoms)[: None if failed else ENOUGH] for cause in causes]
    tries = [
        (atoms, start * chosen)
        for start, some, of_cause in zip(starts, subsets, options, strict=True)
        for atoms in of_cause
        for chosen in some
    ]
    fits = iter(at(suspect, tries))
    graded = []
    for cause, some, of_cause in zip(causes, subsets, options, strict=True):
        tried = [(atoms, [next(fits) for _ in some]) for atoms in of_cause]
        graded.append(_grade(suspect, place, facts, failed, cause, tried, limit))
    return graded


def _grade(
    suspect: Suspect,
    place: tuple[str, int, int],
    facts: dict[Fact, bool],
    failed: bool,
    cause: Cause,
    tried: Sequence[tuple[tuple[Atom, ...], Sequence[ExactFit]]],
    limit: float,
) -> Grade:
    """tried: the atoms, with each source that may be there in place of a choice, and fits: of each change alone; of a
    request that failed those of several together as well, of all last. What is chosen would show if each would."""
    count = len(cause.atoms)
    visible = tuple(all(_effect(suspect, fits[i]) > VISIBLE * limit for _, fits in tried) for i in range(count))
    if not failed or not any(_effect(suspect, one) > VISIBLE * limit for _, fits in tried for one in fits[:count]):
        nothing, none = np.zeros(count), (False,) * count
        return Grade(place, suspect.key, failed, facts, suspect.ratio, suspect.ratio, False, nothing, none, visible)
    best, atoms = min(((_best(suspect, atoms, cause, fits, limit), atoms) for atoms, fits in tried), key=_worst)
    # Of a change that does nothing here nobody knows whether it is there.
    shown = zip(best.coefficients, visible, strict=True)
    present = tuple(bool(abs(value) > ABSENT) and is_visible for value, is_visible in shown)
    explained = best.worst < limit and _effect(suspect, best) > VISIBLE * limit
    names = tuple(atom.source for atom in atoms)
    return Grade(
        place,
        suspect.key,
        failed,
        facts,
        suspect.ratio,
        best.worst,
        explained,
        best.coefficients,
        present,
        visible,
        names,
    )


def _worst(graded: tuple[ExactFit, tuple[Atom, ...]]) -> float:
    return graded[0].worst


def _best(suspect: Suspect, atoms: Sequence[Atom], cause: Cause, fits: Sequence[ExactFit], limit: float) -> ExactFit:
    """Return the changes, all of them or a part, that leave noise; else what they leave together."""
    for tried in (fits[-1], *fits[:-1]):
        if tried.worst < limit:
            return tried
    return fit(suspect, atoms, fits[-1]) if any(value is None for value in cause.common) else fits[-1]


def _subsets(count: int) -> Float[Array, "subsets count"]:
    """Return which of some changes are there: each alone, then two of three, then all."""
    sizes = range(1, count + 1)
    chosen = [members for size in sizes for members in itertools.combinations(range(count), size)]
    return np.array([np.isin(np.arange(count), members) for members in chosen], float)


def _effect(suspect: Suspect, one: ExactFit) -> float:
    """Return how far changes move the worst row of a request, in noise units."""
    return worst_ratio(one.residual - suspect.raw.error, suspect.raw)


def same_for_each_adapter(cause: Cause, grades: Sequence[Grade], alike: float) -> bool:
    """Is what differs between requests the same in all of one adapter? A factor that is another one each time is no
    factor. An adapter that is seen once says nothing, so one of them must be seen twice."""
    for i, value in enumerate(cause.common):
        if value is not None:
            continue
        by_adapter: dict[str | None, list[float]] = {}
        for one in grades:
            by_adapter.setdefault(one.adapter, []).append(float(one.coefficients[i]))
        several = [np.array(values) for values in by_adapter.values() if len(values) > 1]
        if (
            not several
            or len(by_adapter) < 2
            or any(np.ptp(values) > 2 * alike * max(np.abs(values).max(), 0.1) for values in several)
        ):
            return False
    return True
