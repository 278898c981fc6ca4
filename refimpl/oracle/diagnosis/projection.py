"""Below the noise: for a suspected bug the reference can compute in which direction it moves the logits.

    d = logits(mutant) - logits(truth), in float64        c = <error, d> / <d, d>

If the engine has the bug, c = 1; if it is clean, c = 0 up to the noise that happens to lie along d. How much does is
not taken from theory: the honest runs are projected on the same d. Rows are weighted by their noise, and cases add up.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array, Precision
from ...engines.interface import EngineResponse
from ...engines.ours import Ours
from ...errors import LoracleError
from ...ops import Ops
from ..cases.case import forced_tokens, play, prepare
from ..cases.testbed import Testbed
from ..noise.measure import Errors, Sample
from ..noise.verdict import FALSE_ALARM

SAME = 2.0**-36  # of the largest logit: what two float64 answers may differ by when nothing is wrong


def rerun(
    make: Callable[[], Ops], sample: Sample, testbed: Testbed, precision: Precision | None = None
) -> list[Array | None]:
    """Return the logits of a backend on one case, made to produce the engine's tokens: for each exchange that counts
    the rows that the engine showed. NaN where the backend computed none, a prefix that was in its cache; infinity where
    it computed NaN."""
    exact = precision is None
    p = precision or Precision("model", "float64")
    adapters = {testbed.paths[key]: adapter for key, adapter in (testbed.wide if exact else testbed.adapters).items()}
    engine = Ours(make, p, testbed.exact if exact else testbed.model, adapters)
    engine.start(sample.settings)
    if sample.case.stateless:
        prepare(engine, testbed)
    played = play(engine, sample.case, testbed, forced_tokens(sample.exchanges))
    counted = [exchange for exchange in played if exchange.request.cancel_after is None]
    return [
        None if raw is None else _shown_rows(exchange.response, raw)
        for exchange, raw in zip(counted, sample.raws, strict=True)
    ]


def _shown_rows(response: EngineResponse, raw: Errors) -> Array:
    """Return the rows [rows, vocab] of an answer that the engine showed as well; NaN where it has none, and infinity
    where it has no number."""
    positions = range(raw.rows.start, raw.rows.stop)
    rows = np.full((len(positions), raw.vocab), np.nan)
    for i, position in enumerate(positions):
        if response.logits is not None and 0 <= position - response.first_position < len(response.logits):
            row = response.logits[position - response.first_position]
            rows[i, : len(row)] = np.where(np.isnan(row), np.inf, row)[: raw.vocab]
    return rows


def direction(make: Callable[[], Ops], sample: Sample, testbed: Testbed) -> list[Array | None]:
    """Return d of every exchange that counts, as the engine would show it, in units of noise. Rows without numbers: 0.

    LoracleError from a backend that refuses the case is a direction of zeros: it shows nothing."""
    try:
        with np.errstate(all="ignore"):  # some bugs answer NaN
            rows = rerun(make, sample, testbed)
    except LoracleError:
        rows = [None] * len(sample.raws)
    directions: list[Array | None] = []
    for raw, logits in zip(sample.raws, rows, strict=True):
        if raw is None:
            directions.append(None)
        elif logits is None:
            directions.append(np.zeros_like(raw.error))
        else:
            with np.errstate(invalid="ignore", over="ignore"):
                computed = ~np.isnan(logits).all(axis=1)
                shift = raw.view.error(np.where(computed[:, None], logits, 0.0), raw.logits)
            if np.abs(shift[computed]).max(initial=0.0) <= SAME * np.abs(raw.logits[np.isfinite(raw.logits)]).max():
                computed = np.zeros_like(computed)  # equal to the rounding of float64
            directions.append(np.where(computed[:, None], shift, 0.0) / raw.unit[:, None])
    return directions


@dataclass(frozen=True, eq=False)
class ProjectionTerm:
    """One direction beside one exchange's error: sums, so that exchanges and cases can be added up anywhere."""

    adapter: str | None
    along: float  # <error, d>
    length: float  # <d, d>
    honest: Array  # [members] <honest error, d>
    energy: float  # <error, error>
    residual_energy: float  # <error - d, error - d>
    count: int  # numbers shown
    injected: float  # the worst row's ratio, had the engine this bug as well
    broken: bool = False  # d is no number: the mutant answers NaN


def projection_terms(make: Callable[[], Ops], sample: Sample, testbed: Testbed) -> list[ProjectionTerm | None]:
    """Return the terms of a backend beside every exchange of a sample that counts."""
    return [
        None if raw is None or shift is None else _term(exchange.adapter, raw, shift)
        for exchange, raw, shift in zip(sample.counted, sample.raws, direction(make, sample, testbed), strict=True)
    ]


def _term(adapter: str | None, raw: Errors, shift: Array) -> ProjectionTerm:
    unit, shown = raw.unit[:, None], raw.view.shown
    error = raw.error / unit
    energy, count = float(np.sum(error**2)), int(shown.sum())
    if not np.isfinite(shift).all():
        zero = np.zeros(len(raw.honest))
        return ProjectionTerm(adapter, 0.0, 0.0, zero, energy, np.inf, count, np.inf, True)
    honest = np.einsum("jrv,rv->j", raw.honest / unit[None], shift)
    rows = np.sqrt(np.sum((error + shift) ** 2, axis=1) / np.maximum(shown.sum(axis=1), 1))
    return ProjectionTerm(
        adapter,
        float(np.sum(error * shift)),
        float(np.sum(shift * shift)),
        honest,
        energy,
        float(np.sum((error - shift) ** 2)),
        count,
        float(rows.max()),
    )


@dataclass(frozen=True)
class Projection:
    """How much of a direction is in the engine's error."""

    coefficient: float  # 1: the bug itself; 0: nothing of it
    sigma: float  # how far off an honest engine's coefficient is, typically
    strength: float  # 1 / sigma: the score that the bug itself would get
    score: float  # coefficient / sigma
    broken: bool = False

    @property
    def exercised(self) -> bool:
        """Did the cases contain anything that the mutant does otherwise?"""
        return self.strength > 0 or self.broken


def project(by_case: Sequence[Sequence[ProjectionTerm | None]], noisier: float = 1.0) -> Projection:
    """Return the terms of all samples added up. noisier: the engine's own noise over that of the honest runs."""
    if any(term.broken for terms in by_case for term in terms if term):
        return Projection(0.0, float("inf"), 0.0, 0.0, broken=True)
    exercised = [[term for term in terms if term is not None and term.length > 0] for terms in by_case]
    exercised = [terms for terms in exercised if terms]
    if not exercised:
        return Projection(0.0, float("inf"), 0.0, 0.0)
    along = sum(sum(term.along for term in terms) for terms in exercised)
    lengths = np.array([sum(term.length for term in terms) for terms in exercised])
    length = sum(sum(term.length for term in terms) for terms in exercised)
    honest = np.stack([sum(term.honest for term in terms) for terms in exercised])  # [cases, members]
    # Noise that differs from case to case averages out; noise that is the same in each (a rounded weight) does not.
    apart = float(np.mean((honest / np.sqrt(lengths)[:, None]) ** 2))
    together = float(np.mean((honest.sum(axis=0) / np.sqrt(length)) ** 2))
    sigma = float(np.sqrt(max(apart, together) / length)) * max(noisier, 1.0)
    coefficient = along / length
    if not sigma:
        return Projection(coefficient, sigma, float("inf"), float(np.copysign(np.inf, coefficient)))
    return Projection(coefficient, sigma, 1 / sigma, coefficient / sigma)


def remaining(by_case: Sequence[Sequence[ProjectionTerm | None]], bug: bool = True) -> float:
    """Return the rms of the error less the direction (c = 1), in units of noise; bug=False: of the error."""
    present = [term for terms in by_case for term in terms if term is not None]
    count = sum(term.count for term in present)
    return (
        float(np.sqrt(sum(term.residual_energy if bug else term.energy for term in present) / count)) if count else 0.0
    )


def confined(by_case: Sequence[Sequence[ProjectionTerm | None]], adapter: str) -> list[list[ProjectionTerm | None]]:
    """Return the terms of the same direction in the requests of one adapter only."""
    return [[term if term is None or term.adapter == adapter else without(term) for term in terms] for terms in by_case]


def without(term: ProjectionTerm) -> ProjectionTerm:
    """Return the term of a bug that does nothing in this request."""
    return ProjectionTerm(term.adapter, 0.0, 0.0, np.zeros_like(term.honest), term.energy, term.energy, term.count, 0.0)


def limit(directions: int) -> float:
    """Return the score that honest coefficients exceed as rarely as a whole campaign may raise a false alarm.

    Bonferroni over the directions. Their sigmas are estimated from a handful of honest runs, so that the quantile is
    Student's, for as many degrees of freedom as there are honest runs of one case; it is computed by its own
    asymptotic series (Abramowitz & Stegun 26.7.5, inverted)."""
    normal = statistics.NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * max(directions, 1)))
    freedom = 30.0
    return (
        normal
        + (normal**3 + normal) / (4 * freedom)
        + (5 * normal**5 + 16 * normal**3 + 3 * normal) / (96 * freedom**2)
    )
