"""Below the noise: for a suspected bug the reference can compute in which direction it moves the logits.

    d = logits(mutant) - logits(truth), in float64        c = <error, d> / <d, d>

If the engine has the bug, c = 1; if it is clean, c = 0 up to the noise that happens to lie along d. How much does is
not taken from theory: the honest runs are projected on the same d. Rows are weighted by their noise, and cases add up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Array, Precision
from ..engines.interface import Settings
from ..engines.ours import Ours
from ..errors import LoracleError
from ..ops import Ops
from .case import Case, Exchange, forced_tokens, play, prepare
from .measure import Raw
from .stage import Stage
from .verdict import FALSE_ALARM


@dataclass(frozen=True, eq=False)
class Sample:
    """One case with its errors kept."""

    case: Case
    exchanges: Sequence[Exchange]  # all of them
    raws: Sequence[Raw | None]  # of those that count
    settings: Settings

    @property
    def counted(self) -> list[Exchange]:
        """Those that count, in the order of `raws`."""
        return [e for e in self.exchanges if e.ask.cancel_after is None]


def rerun(
    make: Callable[[], Ops], sample: Sample, stage: Stage, precision: Precision | None = None
) -> list[Array | None]:
    """The logits of a table of steps on one case, made to produce the engine's tokens: for each exchange that counts
    the rows that the engine showed. NaN where the table computed none: a prefix that it found in its cache."""
    exact = precision is None
    p = precision or Precision("model", "float64")
    adapters = {stage.paths[key]: a for key, a in stage.adapters.items()}
    engine = Ours(make, p, stage.exact if exact else stage.model, adapters)
    engine.start(sample.settings)
    if sample.case.stateless:
        prepare(engine, stage)
    played = play(engine, sample.case, stage, forced_tokens(sample.exchanges))
    found: list[Array | None] = []
    for e, raw in zip([e for e in played if e.ask.cancel_after is None], sample.raws, strict=True):
        if raw is None:
            found.append(None)
            continue
        places = range(raw.rows.start, raw.rows.stop)
        rows = np.full((len(places), raw.vocab), np.nan)
        for i, place in enumerate(places):
            if e.answer.logits is not None and 0 <= place - e.answer.first < len(e.answer.logits):
                row = e.answer.logits[place - e.answer.first]
                rows[i, : len(row)] = row[: raw.vocab]
        found.append(rows)
    return found


def direction(make: Callable[[], Ops], sample: Sample, stage: Stage) -> list[Array | None]:
    """d of every exchange that counts, as the engine would show it, in units of noise. Rows without numbers are 0.

    LoracleError from a table that refuses the case is a direction of zeros: it shows nothing."""
    try:
        rows = rerun(make, sample, stage)
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
                d = raw.view.of(np.where(computed[:, None], own, 0.0)) - raw.exact
            found.append(np.where(computed[:, None], d, 0.0) / raw.unit[:, None])
    return found


@dataclass(frozen=True)
class Seen:
    """How much of a direction lies in the engine's error."""

    coefficient: float  # 1: the bug itself; 0: nothing of it
    sigma: float  # how far off an honest engine's coefficient is, typically
    strength: float  # |d| in units of what an honest run has along it: the score that the bug itself would get
    score: float  # coefficient / sigma
    broken: bool = False  # the direction is no number: the mutant answers NaN

    @property
    def exercised(self) -> bool:
        """Did the cases contain anything that the mutant does otherwise?"""
        return self.strength > 0 or self.broken


def project(samples: Sequence[Sample], directions: Sequence[Sequence[Array | None]], noisier: float = 1.0) -> Seen:
    """All samples together. noisier: the engine's own noise over that of the honest runs."""
    along, length, honest, lengths = 0.0, 0.0, [], []
    for sample, ds in zip(samples, directions, strict=True):
        case_length, case_honest = 0.0, None
        for raw, d in zip(sample.raws, ds, strict=True):
            if raw is None or d is None:
                continue
            if not np.isfinite(d).all():
                return Seen(0.0, float("inf"), 0.0, 0.0, broken=True)
            unit = raw.unit[:, None]
            along += float(np.sum(raw.error / unit * d))
            case_length += float(np.sum(d * d))
            own = np.einsum("jrv,rv->j", raw.honest / unit[None], d)
            case_honest = own if case_honest is None else case_honest + own
        if case_length > 0 and case_honest is not None:
            honest.append(case_honest)
            lengths.append(case_length)
            length += case_length
    if length == 0:
        return Seen(0.0, float("inf"), 0.0, 0.0)
    by_case = np.stack(honest)  # [cases, members]
    # Noise that differs from case to case averages out, noise that is the same in each (a rounded weight) does not.
    apart = float(np.mean((by_case / np.sqrt(lengths)[:, None]) ** 2))
    together = float(np.mean((by_case.sum(axis=0) / np.sqrt(length)) ** 2))
    kappa = np.sqrt(max(apart, together)) * max(noisier, 1.0)
    sigma = float(kappa / np.sqrt(length))
    return Seen(along / length, sigma, float(np.sqrt(length) / kappa), along / length / sigma)


def limit(directions: int) -> float:
    """The score that `directions` honest coefficients leave as rarely as a whole campaign may raise a false alarm.

    Bonferroni over the directions. Their sigmas are estimated from a handful of honest runs, so that the quantile is
    Student's, for as many degrees of freedom as there are honest runs of one case; it is computed by its own
    asymptotic series (Abramowitz & Stegun 26.7.5, inverted)."""
    import statistics

    z = statistics.NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * max(directions, 1)))
    n = 30.0
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)


def whitened(samples: Sequence[Sample]) -> list[list[Array | None]]:
    """The engine's errors in units of noise."""
    return [[None if raw is None else raw.error / raw.unit[:, None] for raw in s.raws] for s in samples]


def remaining(samples: Sequence[Sample], directions: Sequence[Sequence[Array | None]], c: float = 1.0) -> float:
    """The rms of what is left of the error when c times the direction is taken out, in units of noise."""
    total, count = 0.0, 0
    for sample, ds in zip(samples, directions, strict=True):
        for raw, d in zip(sample.raws, ds, strict=True):
            if raw is None or d is None:
                continue
            left = (raw.error / raw.unit[:, None] - c * d)[raw.view.shown]
            if not np.isfinite(left).all():
                return float("inf")
            total, count = total + float(np.sum(left**2)), count + left.size
    return float(np.sqrt(total / count)) if count else 0.0


Directions = Mapping[str, Sequence[Sequence[Array | None]]]
