"""pass, fail, undecided: from ratios to a verdict, with the chance of a false alarm stated for the whole campaign.

The logarithm of a row's ratio is spread around a level. The spread is that of the honest runs about their own levels.
The level is the engine's own, read off its base rows, which have its rounding and no LoRA; but no higher than that of
the noisiest honest run, or a broken base would excuse everything, and no lower than that of the median honest run. An
engine has no single level: the product of one row is summed in another order than that of twenty, and few base rows do
not show every shape; so it is the upper end of the base rows that counts. Against these a row, and a request as a
whole, is as many spreads too far off as its score says. Where the honest runs of one request are spread wider than
those of all (a loud adapter leaves errors of few directions, and the rms of few numbers is unsteady), it is judged by
its own spread. How rare a score is, the honest runs say as well: a normal distribution, as wide as their largest scores
make it. No tolerance is written down anywhere: only the two odds are.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...arrays import Array
from .measure import ErrorRatios
from .rms import rms

FALSE_ALARM = 1e-6  # how often a whole campaign over an honest engine may end in "fail" by chance
DOUBT = 1e-2  # what happens by chance in fewer than this share of campaigns is looked at again
ROWS_OF_ALL = 8  # rows that the spread of all counts as beside those of a request; larger: its own spread counts less
# What rows of a request have in common, as a share of the spread: 0.2 to 0.43 in long campaigns, and nothing that a few
# requests could tell: there, it counts as so many of them.
SHARED, REQUESTS_OF_ALL = 0.35, 20
# How much coarser than the noisiest of our few honest runs an engine may be in rows of a loud adapter, where it is
# looked at again; larger: faint bugs pass. A right mlx-lm has failed at 1.0: two cases of one base, at 0.87 and 0.93 of
# the score that fails, since our own products are finer.
COARSER = 1.15
SURE = (
    2.0  # standard errors that an engine's level may lie above what its base rows say; larger: few base rows say less
)


@dataclass(frozen=True)
class Thresholds:
    """What honest looks like in one campaign."""

    level: float  # log of the ratio of an honest row of this engine
    spread: float
    whole_level: float  # the same of whole requests
    whole_spread: float
    shared: float  # the part of it that all rows of a request have in common: more rows do not average it away
    highest: float  # the level of the noisiest honest run
    base: float  # the level of the engine's own base rows, whatever it is; nan without such rows
    pass_score: float  # scores up to here pass
    fail_score: float  # scores from here on fail
    tested: int = 0  # rows and requests
    whole_highest: float = -math.inf  # of whole requests, the level of the noisiest honest run

    def as_noisy_as_honest(self) -> "Thresholds":
        """Return them with the level of the noisiest honest run, and a little more.

        Base rows do not show how an engine rounds where LoRA is added: one whose base rows are finer than ours, by wide
        sums, may be as coarse as any honest run in the rows of a loud adapter; or coarser than those few."""
        more = math.log(COARSER)
        level, whole_level = max(self.level, self.highest), max(self.whole_level, self.whole_highest)
        return replace(self, level=level + more, whole_level=whole_level + more)

    @property
    def ratio(self) -> float:
        """The ratio of one row from which on it fails, where the honest runs are spread in it as in all."""
        return float(np.exp(self.level + self.fail_score * self.spread))


def learn_thresholds(measured: Sequence[ErrorRatios]) -> Thresholds:
    """Learnt from all that was measured. Of an engine without readable rows: those of no rows."""
    readable = [ratios for ratios in measured if not ratios.problem and ratios.telling.any()]
    if not readable:
        return Thresholds(0.0, 1.0, 0.0, 1.0, 1.0, 0.0, float("nan"), *score_thresholds(np.zeros(0), 1))
    rows = np.concatenate([_log(ratios.honest_there) for ratios in readable], axis=1)  # [members, rows]
    wholes = np.stack([_log(ratios.honest_overall) for ratios in readable], axis=1)  # [members, requests]
    control = [ratios for ratios in readable if ratios.adapter is None]
    row, of_requests = _learn(rows), _learn(wholes)
    base = float("nan")
    if control:
        row, base = _as_seen(row, np.concatenate([_log(ratios.ratio[ratios.telling]) for ratios in control]))
        of_requests, _ = _as_seen(of_requests, np.concatenate([_log(np.array([ratios.overall])) for ratios in control]))
    tested = sum(ratios.ratio.size + 1 for ratios in measured if not ratios.problem)
    counts = np.array([int(ratios.telling.sum()) for ratios in readable])
    between = max(of_requests.spread**2 - row.spread**2 * float(np.mean(1 / counts)), 0.0)
    total = len(readable) + REQUESTS_OF_ALL
    shared = float(np.sqrt((len(readable) * between + REQUESTS_OF_ALL * (SHARED * row.spread) ** 2) / total))
    spreads_of_rows = np.array([_spread_of(ratios.honest_there, row.spread) for ratios in readable])
    spreads = _spread_of_whole(shared, row.spread, spreads_of_rows, counts)
    of_rows, of_wholes = _centred(rows) / np.repeat(spreads_of_rows, counts), _centred(wholes) / spreads
    scores = np.concatenate([of_rows.ravel(), of_wholes.ravel()])
    odds = score_thresholds(scores, tested)
    return Thresholds(
        row.level,
        row.spread,
        of_requests.level,
        of_requests.spread,
        shared,
        row.highest,
        base,
        *odds,
        tested,
        of_requests.highest,
    )


def _centred(x: Array) -> Array:
    """Each honest run about its own level."""
    return x - x.mean(axis=1, keepdims=True)


def _spread_of(honest: Array, pooled: float) -> float:
    """Of one request's rows: as its own honest runs [members, rows] are spread, never less than those of all."""
    n = honest.shape[1] - 1
    variance = float(_log(honest).var(axis=1, ddof=1).mean()) if n > 0 else 0.0
    return max(pooled, math.sqrt((ROWS_OF_ALL * pooled**2 + n * variance) / (ROWS_OF_ALL + n)))


def _spread_of_whole(shared: float, pooled: float, spread: Any, rows: Any) -> Any:
    """Of a request with so many rows, and a spread of its own. One of a single row is spread as that row is, one of
    many only as they agree, which they do more where they are spread wider."""
    return spread * np.sqrt((shared / pooled) ** 2 + 1 / rows)


def _spread_of_rows(honest: Array, spread: float) -> Array:
    """Of each row [rows], as the honest runs are spread in it, never less than `spread`, that of its request. Where the
    errors of a row have one direction, their rms is one number, and some runs are far out that are no bug."""
    telling = np.isfinite(honest).all(axis=0)
    variance = np.full(len(telling), spread**2)
    variance[telling] = np.square(_centred(_log(honest[:, telling]))).mean(axis=0)
    pooled = (ROWS_OF_ALL * spread**2 + len(honest) * variance) / (ROWS_OF_ALL + len(honest))
    return np.maximum(spread, np.sqrt(pooled))


def score_thresholds(honest: Array, tested: int) -> tuple[float, float]:
    """Scores that `tested` honest ones leave with the odds above (Bonferroni). honest: scores of honest runs.

    Those of a normal distribution that is wide enough for the largest of the honest scores."""
    normal, width = statistics.NormalDist(), 1.0
    for share in (1e-2, 1e-3, 1 / max(honest.size, 1)):
        if share * honest.size >= 1 and honest.size >= 100:
            width = max(width, float(np.quantile(honest, 1 - share)) / normal.inv_cdf(1 - share))
    scores = [width * normal.inv_cdf(1 - odds / max(tested, 1)) for odds in (DOUBT, FALSE_ALARM)]
    return scores[0], scores[1]


@dataclass(frozen=True)
class Honest:
    """Logarithms of ratios of the honest runs: where they lie, how they are spread, and the extremes of both."""

    level: float
    highest: float
    spread: float
    widest: float


def _learn(x: Array) -> Honest:
    """From [members, n]."""
    levels, spreads = x.mean(axis=1), x.std(axis=1)
    pooled = float(rms(spreads))
    return Honest(float(np.median(levels)), float(levels.max()), max(pooled, 1e-3), float(spreads.max()))


def _as_seen(honest: Honest, control: Array) -> tuple[Honest, float]:
    """With the engine's own level and spread, as far as an honest run has them; and its median whatever it is."""
    base, n = float(np.median(control)), len(control)
    deviation = 1.4826 * float(np.median(np.abs(control - base)))  # as a standard deviation (Hampel 1974)
    spread = max(min(deviation, honest.widest), honest.spread)
    by_chance = spread * statistics.NormalDist().inv_cdf(n / (n + 1))  # how far the largest of n lies above the level
    upper = max(base + SURE * spread / math.sqrt(n), float(np.max(control)) - by_chance)
    return replace(honest, level=min(max(upper, honest.level), honest.highest), spread=spread), base


def _log(x: Array) -> Array:
    """Of ratios; no error at all is as good as can be, not minus infinity."""
    return np.log(np.maximum(x, 1e-12))


@dataclass(frozen=True)
class Verdict:
    """One request's verdict."""

    verdict: str  # pass, fail, undecided
    score: float
    ratio: float  # of its worst row
    place: int  # where that row is
    why: str = ""
    limit: float = float("nan")  # that row fails from this ratio on: Thresholds.ratio, or more, by its own spread


def judge(ratios: ErrorRatios, thresholds: Thresholds, each_row: bool = False) -> Verdict:
    """A row that is no number fails: every comparison here is written so that a NaN does not pass.

    each_row: with the spread of each row by itself, for which the honest runs must be many."""
    if ratios.problem:
        return Verdict("fail", float("inf"), float("inf"), 0, ratios.problem)
    spread = _spread_of(ratios.honest_there, thresholds.spread)
    of_rows = _spread_of_rows(ratios.honest, spread) if each_row else spread
    scores = (_log(ratios.ratio) - thresholds.level) / of_rows
    worst = int(np.argmax(np.where(np.isnan(scores), np.inf, scores)))
    whole_spread = _spread_of_whole(thresholds.shared, thresholds.spread, spread, len(ratios.ratio))
    overall_score = float((_log(np.array([ratios.overall]))[0] - thresholds.whole_level) / whole_spread)
    score = max(float(scores[worst]), overall_score)
    ratio, place = float(ratios.ratio[worst]), ratios.first + worst
    spread_there = float(np.broadcast_to(of_rows, scores.shape)[worst])
    limit = math.exp(thresholds.level + thresholds.fail_score * spread_there)
    why = f"{ratio:.3g} x noise at place {place}"
    if scores[worst] <= thresholds.pass_score < overall_score:  # no row is, but all of them together are
        why = f"{ratios.overall:.3g} x noise over its {len(scores)} rows"
    if not score < thresholds.fail_score:
        return Verdict("fail", score, ratio, place, why, limit)
    if not score <= thresholds.pass_score:
        return Verdict("undecided", score, ratio, place, f"{why}: rare, not impossible", limit)
    return Verdict("pass", score, ratio, place, limit=limit)


def overall(verdicts: Sequence[str]) -> str:
    """The worst of them. No verdict at all is undecided: nothing was shown."""
    return "fail" if "fail" in verdicts else "undecided" if "undecided" in verdicts or not verdicts else "pass"


def no_chance(close: int) -> bool:
    """Are so many cases too close to call that chance cannot be blamed? Each campaign has DOUBT of them (Poisson)."""
    return 1 - sum(math.exp(-DOUBT) * DOUBT**k / math.factorial(k) for k in range(close)) < FALSE_ALARM
