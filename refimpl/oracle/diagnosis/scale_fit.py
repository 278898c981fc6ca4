"""The factor of a wrong scale: one for all, or one for each adapter, everywhere or in one place.

Requests do not disturb each other, so that the adapters' factors are fitted side by side, each on its own requests.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ...adapter import Adapter
from ...config import Module
from ...lora import LoraWeights
from ...ops import Ops
from ..bugs import Mutant
from ..bugs.scopes import Scope, scoped_ops
from ..bugs.steps import rescaling
from ..cases.testbed import Testbed
from .projection import ProjectionTerm, Sample, project, projection_terms

FIRST = 1.001  # a step so small that it is linear
FAR = 64.0  # no factor is looked for beyond this
STEPS = 10
FEW = 3  # samples that a factor is fitted on
NAMED = 4  # digits of a factor in a name

Parts = list[list[ProjectionTerm | None]]


def scaled(factors: Mapping[str, float], testbed: Testbed, place: Scope | None) -> Ops:
    """The scale of each adapter of the stage, by its key, times its factor."""
    of_lora = {
        id(held[key].lora): factor for key, factor in factors.items() for held in (testbed.adapters, testbed.wide)
    }

    def factor(module: Module, w: LoraWeights, adapter: Adapter) -> float:
        return of_lora.get(id(adapter.lora), 1.0)

    ops = rescaling(factor)
    return ops if place is None else scoped_ops(ops, place)


def mutant(factors: Mapping[str, float], testbed: Testbed, place: Scope | None) -> Mutant:
    """With its factors in its name."""
    wrong = {key: k for key, k in factors.items() if k != 1}
    if len(set(wrong.values())) == 1 and len(wrong) == len(testbed.adapters):
        shown = f"{next(iter(wrong.values())):.{NAMED}g}"
        what = f"every delta is {shown} times as large as it should be"
    else:
        shown = ", ".join(f"{key}: {k:.{NAMED}g}" for key, k in wrong.items())
        what = f"deltas have another size than they should have, by adapter: {shown}"
    where = f" @ {place.name}" if place else ""
    what += f"; in {place.name} alone" if place else ""
    return Mutant(f"scale_times[{shown}]{where}", "A", what, (), lambda: scaled(factors, testbed, place), scales=True)


def fitted(samples: Sequence[Sample], testbed: Testbed, place: Scope | None, each: bool) -> tuple[Mutant, Parts] | None:
    """The factors at which the coefficient is 1, from a step small enough to be linear: k <- 1 + c (k - 1), and the
    secant from then on. each: one factor for every adapter. None if there are none."""
    some = _enough(samples)
    factors = dict.fromkeys(testbed.adapters, FIRST)
    before: dict[str, tuple[float, float]] = {}
    best: tuple[float, dict[str, float], Parts] | None = None
    for _ in range(STEPS):
        by_case = [projection_terms(lambda: scaled(factors, testbed, place), sample, testbed) for sample in some]  # noqa: B023
        left = sum(p.left for ps in by_case for p in ps if p is not None)
        if not np.isfinite(left):
            break
        if best is None or left < best[0]:
            best = left, factors, by_case
        following = _next(factors, by_case, before, each)
        if all(abs(following[key] - k) <= 1e-9 for key, k in factors.items()):
            break
        factors = following
    if best is None:
        return None
    _, factors, by_case = best
    if each:  # what is 1 to within its error is 1
        factors = {key: k if _is_not_one(by_case, key) else 1.0 for key, k in factors.items()}
    return mutant(factors, testbed, place), [
        projection_terms(lambda: scaled(factors, testbed, place), x, testbed) for x in samples
    ]


def _enough(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The first few; so many that they have every adapter that any of them has."""
    keys = [{e.adapter for e in sample.counted} for sample in samples]
    n = next(n for n in range(len(keys) + 1) if set().union(*keys[:n]) == set().union(*keys))
    return samples[: max(n, FEW)]


def _next(
    factors: Mapping[str, float], by_case: Parts, before: dict[str, tuple[float, float]], each: bool
) -> dict[str, float]:
    groups = [[key] for key in factors] if each else [list(factors)]
    found: dict[str, float] = {}
    for keys in groups:
        k = factors[keys[0]]
        seen = project([[p for p in ps if p is not None and p.adapter in keys] for ps in by_case])
        if seen.strength == 0 or k == 1:
            found |= dict.fromkeys(keys, 1.0)
            continue
        off = (seen.coefficient - 1) * (k - 1)  # the next one less k, were the logits linear in it
        old, slope = before.get(keys[0]), -1.0
        if old is not None and old[0] != FIRST and old[0] != k:
            slope = (off - old[1]) / (k - old[0])
        before[keys[0]] = k, off
        found |= dict.fromkeys(keys, float(np.clip(k - off / slope if slope else k + off, -FAR, FAR)))
    return found


def _is_not_one(by_case: Parts, key: str) -> bool:
    seen = project([[p for p in ps if p is not None and p.adapter == key] for ps in by_case])
    return seen.strength > 0 and abs(seen.score) > 6
