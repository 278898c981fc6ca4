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
    """The logits of a table of steps on one case, made to produce the engine's tokens: for each exchange that counts
    the rows that the engine showed. NaN where the table computed none: a prefix that it found in its cache."""
    exact = precision is None
    p = precision or Precision("model", "float64")
    adapters = {testbed.paths[key]: a for key, a in (testbed.wide if exact else testbed.adapters).items()}
    engine = Ours(make, p, testbed.exact if exact else testbed.model, adapters)
    engine.start(sample.settings)
    if sample.case.stateless:
        prepare(engine, testbed)
    played = play(engine, sample.case, testbed, forced_tokens(sample.exchanges))
    found: list[Array | None] = []
    for e, raw in zip([e for e in played if e.ask.cancel_after is None], sample.raws, strict=True):
        if raw is None:
            found.append(None)
            continue
        places = range(raw.rows.start, raw.rows.stop)
        rows = np.full((len(places), raw.vocab), np.nan)
        for i, place in enumerate(places):
            if e.answer.logits is not None and 0 <= place - e.answer.first_position < len(e.answer.logits):
                row = e.answer.logits[place - e.answer.first_position]
                rows[i, : len(row)] = row[: raw.vocab]
        found.append(rows)
    return found


def direction(make: Callable[[], Ops], sample: Sample, testbed: Testbed) -> list[Array | None]:
    """d of every exchange that counts, as the engine would show it, in units of noise. Rows without numbers are 0.

    LoracleError from a table that refuses the case is a direction of zeros: it shows nothing."""
    try:
        with np.errstate(all="ignore"):  # some bugs answer NaN
            rows = rerun(make, sample, testbed)
    except LoracleError:
        rows = [None] * len(sample.raws)
    found: list[Array | None] = []
    for raw, own in zip(sample.raws, rows, strict=True):
        if raw is None:
            found.append(None)
        elif own is None:
            found.append(np.zeros_like(raw.error))
        else:
            with np.errstate(invalid="ignore", over="ignore"):
                computed = ~np.isnan(own).all(axis=1)
                d = raw.view.error(np.where(computed[:, None], own, 0.0), raw.logits)
            if np.abs(d[computed]).max(initial=0.0) <= SAME * np.abs(raw.logits[np.isfinite(raw.logits)]).max():
                computed = np.zeros_like(computed)  # equal to the rounding of float64
            found.append(np.where(computed[:, None], d, 0.0) / raw.unit[:, None])
    return found


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
    """A table of steps beside every exchange of a sample that counts."""
    return [
        None if raw is None or d is None else _part(e.adapter, raw, d)
        for e, raw, d in zip(sample.counted, sample.raws, direction(make, sample, testbed), strict=True)
    ]


def _part(adapter: str | None, raw: Errors, d: Array) -> ProjectionTerm:
    unit, shown = raw.unit[:, None], raw.view.shown
    error = raw.error / unit
    energy, count = float(np.sum(error**2)), int(shown.sum())
    if not np.isfinite(d).all():
        zero = np.zeros(len(raw.honest))
        return ProjectionTerm(adapter, 0.0, 0.0, zero, energy, np.inf, count, np.inf, True)
    honest = np.einsum("jrv,rv->j", raw.honest / unit[None], d)
    rows = np.sqrt(np.sum((error + d) ** 2, axis=1) / np.maximum(shown.sum(axis=1), 1))
    return ProjectionTerm(
        adapter,
        float(np.sum(error * d)),
        float(np.sum(d * d)),
        honest,
        energy,
        float(np.sum((error - d) ** 2)),
        count,
        float(rows.max()),
    )


@dataclass(frozen=True)
class Projection:
    """How much of a direction lies in the engine's error."""

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
    """The parts of all samples together. noisier: the engine's own noise over that of the honest runs."""
    if any(p.broken for ps in by_case for p in ps if p):
        return Projection(0.0, float("inf"), 0.0, 0.0, broken=True)
    sums = []
    for ps in by_case:
        known = [p for p in ps if p is not None and p.length > 0]
        if known:
            sums.append((sum(p.along for p in known), sum(p.length for p in known), sum(p.honest for p in known)))
    if not sums:
        return Projection(0.0, float("inf"), 0.0, 0.0)
    along, length = sum(s[0] for s in sums), sum(s[1] for s in sums)
    lengths, honest = np.array([s[1] for s in sums]), np.stack([np.asarray(s[2]) for s in sums])
    # Noise that differs from case to case averages out; noise that is the same in each (a rounded weight) does not.
    apart = float(np.mean((honest / np.sqrt(lengths)[:, None]) ** 2))
    together = float(np.mean((honest.sum(axis=0) / np.sqrt(length)) ** 2))
    sigma = float(np.sqrt(max(apart, together) / length)) * max(noisier, 1.0)
    c = along / length
    return Projection(
        c, sigma, 1 / sigma if sigma else float("inf"), c / sigma if sigma else float(np.copysign(np.inf, c))
    )


def remaining(by_case: Sequence[Sequence[ProjectionTerm | None]], bug: bool = True) -> float:
    """The rms of what is left of the error when the direction is taken out, in units of noise; or of the error."""
    known = [p for ps in by_case for p in ps if p is not None]
    count = sum(p.count for p in known)
    return float(np.sqrt(sum(p.residual_energy if bug else p.energy for p in known) / count)) if count else 0.0


def confined(by_case: Sequence[Sequence[ProjectionTerm | None]], adapter: str) -> list[list[ProjectionTerm | None]]:
    """The same direction, in the requests of one adapter only."""
    return [[p if p is None or p.adapter == adapter else without(p) for p in ps] for ps in by_case]


def without(p: ProjectionTerm) -> ProjectionTerm:
    """The same request, of a bug that does nothing there."""
    return ProjectionTerm(p.adapter, 0.0, 0.0, np.zeros_like(p.honest), p.energy, p.energy, p.count, 0.0)


def limit(directions: int) -> float:
    """The score that `directions` honest coefficients leave as rarely as a whole campaign may raise a false alarm.

    Bonferroni over the directions. Their sigmas are estimated from a handful of honest runs, so that the quantile is
    Student's, for as many degrees of freedom as there are honest runs of one case; it is computed by its own
    asymptotic series (Abramowitz & Stegun 26.7.5, inverted)."""
    z = statistics.NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * max(directions, 1)))
    n = 30.0
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
