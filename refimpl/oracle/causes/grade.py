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
from .suspect import Suspect, worst_ratio

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
    wanted = [_subsets(len(start)) if failed else np.eye(len(start)) for start in starts]
    tries = [
        (cause.atoms, start * chosen)
        for cause, start, subsets in zip(causes, starts, wanted, strict=True)
        for chosen in subsets
    ]
    fits = iter(at(suspect, tries))
    return [
        _grade(suspect, place, facts, failed, cause, [next(fits) for _ in subsets], limit)
        for cause, subsets in zip(causes, wanted, strict=True)
    ]


def _grade(
    suspect: Suspect,
    place: tuple[str, int, int],
    facts: dict[Fact, bool],
    failed: bool,
    cause: Cause,
    fits: Sequence[ExactFit],
    limit: float,
) -> Grade:
    """fits: of each change alone; of a request that failed those of several together as well, of all last."""
    count = len(cause.atoms)
    visible = tuple(_effect(suspect, one) > VISIBLE * limit for one in fits[:count])
    if not failed or not any(visible):
        nothing, none = np.zeros(count), (False,) * count
        return Grade(place, suspect.key, failed, facts, suspect.ratio, suspect.ratio, False, nothing, none, visible)
    best = _best(suspect, cause, fits, limit)
    present = tuple(bool(abs(value) > ABSENT) for value in best.coefficients)
    explained = best.worst < limit and _effect(suspect, best) > VISIBLE * limit
    return Grade(
        place, suspect.key, failed, facts, suspect.ratio, best.worst, explained, best.coefficients, present, visible
    )


def _best(suspect: Suspect, cause: Cause, fits: Sequence[ExactFit], limit: float) -> ExactFit:
    """Return the changes, all of them or a part, that leave noise; else what they leave together."""
    for tried in (fits[-1], *fits[:-1]):
        if tried.worst < limit:
            return tried
    return fit(suspect, cause.atoms, fits[-1]) if any(value is None for value in cause.common) else fits[-1]


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
        if not several or any(np.ptp(values) > 2 * alike * max(np.abs(values).max(), 0.1) for values in several):
            return False
    return True
