"""The factor of a wrong scale: one for all, or one for each adapter, everywhere or in one scope.

Requests do not disturb each other, so that the adapters' factors are fitted side by side, each on its own requests.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ...adapter import Adapter
from ...adapter_slots import LoraWeights
from ...config import Module
from ...ops import Ops
from ..bugs import Mutant
from ..bugs.scopes import Scope, scoped_ops
from ..bugs.steps import rescaling
from ..cases.testbed import Testbed
from ..noise.measure import Sample
from .candidate import Terms
from .fit import Secant
from .projection import project, projection_terms

STEPS = 10  # of the secants; larger: slower where there is no fixed point
FEW = 3  # samples that a factor is fitted on; larger: slower, and a factor less bent by one case's rounding
DIGITS = 4  # of a factor in a name; larger: two fits of one bug have different names
NOT_ONE = 6  # sigma from which on an adapter's own factor is not 1; larger: small wrong factors are called right


def scaled(factors: Mapping[str, float], testbed: Testbed, scope: Scope | None) -> Ops:
    """Return NUMPY with the scale of each adapter of the testbed, by its key, times its factor."""
    of_lora = {
        id(adapters[key].lora): factor
        for key, factor in factors.items()
        for adapters in (testbed.adapters, testbed.wide)
    }

    def factor_of(module: Module, lora: LoraWeights, adapter: Adapter) -> float:
        return of_lora.get(id(adapter.lora), 1.0)

    ops = rescaling(factor_of)
    return ops if scope is None else scoped_ops(ops, scope)


def scale_bug(factors: Mapping[str, float], testbed: Testbed, scope: Scope | None) -> Mutant:
    """Return the bug with its factors in its name."""
    wrong = {key: factor for key, factor in factors.items() if factor != 1}
    if len(set(wrong.values())) == 1 and len(wrong) == len(testbed.adapters):
        text = f"{next(iter(wrong.values())):.{DIGITS}g}"
        what = f"every delta is {text} times as large as it should be"
    else:
        text = ", ".join(f"{key}: {factor:.{DIGITS}g}" for key, factor in wrong.items())
        what = f"deltas have another size than they should have, by adapter: {text}"
    where = f" @ {scope.name}" if scope else ""
    what += f"; in {scope.name} alone" if scope else ""
    return Mutant(f"scale_times[{text}]{where}", "A", what, (), lambda: scaled(factors, testbed, scope), scales=True)


def fit_scales(
    samples: Sequence[Sample], testbed: Testbed, scope: Scope | None, each: bool
) -> tuple[Mutant, Terms] | None:
    """Return the factors at which the coefficient is 1, as a bug, and its terms of all samples; None if there are none.

    each: one factor for every adapter, and not one for all. Of the values that were tried the best counts, not the
    last: near the fixed point the coefficient is noise, and a secant over noise may go anywhere."""
    few = _enough(samples)
    groups = [(key,) for key in testbed.adapters] if each else [tuple(testbed.adapters)]
    secants = {keys: Secant() for keys in groups}
    best: tuple[float, dict[str, float], Terms] | None = None
    for _ in range(STEPS):
        factors = {key: secant.k for keys, secant in secants.items() for key in keys}
        by_case = _terms(factors, few, testbed, scope)
        residual = sum(term.residual_energy for terms in by_case for term in terms if term is not None)
        if not np.isfinite(residual):
            break
        if best is None or residual < best[0]:
            best = residual, factors, by_case
        for keys, secant in secants.items():
            _advance(secant, keys, by_case)
        if all(abs(secant.k - factors[keys[0]]) <= 1e-9 for keys, secant in secants.items()):
            break
    if best is None:
        return None
    _, factors, by_case = best
    if each:  # what is 1 to within its error is 1
        factors = {key: factor if _is_not_one(by_case, key) else 1.0 for key, factor in factors.items()}
    return scale_bug(factors, testbed, scope), _terms(factors, samples, testbed, scope)


def _terms(factors: Mapping[str, float], samples: Sequence[Sample], testbed: Testbed, scope: Scope | None) -> Terms:
    return [projection_terms(lambda: scaled(factors, testbed, scope), sample, testbed) for sample in samples]


def _enough(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the first few; so many that they have every adapter that any of them has."""
    keys = [{exchange.adapter for exchange in sample.counted} for sample in samples]
    n = next(n for n in range(len(keys) + 1) if set().union(*keys[:n]) == set().union(*keys))
    return samples[: max(n, FEW)]


def _advance(secant: Secant, keys: Sequence[str], by_case: Terms) -> None:
    """One step, on the requests of these adapters; to 1 where they have none, or are there already."""
    projection = project([[term for term in terms if term is not None and term.adapter in keys] for terms in by_case])
    if projection.strength == 0 or secant.k == 1:
        secant.k = 1.0
    else:
        secant.advance(projection.coefficient)


def _is_not_one(by_case: Terms, key: str) -> bool:
    projection = project([[term for term in terms if term is not None and term.adapter == key] for terms in by_case])
    return projection.strength > 0 and abs(projection.score) > NOT_ONE
