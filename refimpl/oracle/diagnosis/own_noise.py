"""What a bug leaves of an error, in units of how far honest runs *of the mutant* are from its exact answer.

An ensemble of the truth would call a bug that makes logits ten times larger unexplained, because its noise is larger as
well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array
from ..cases.testbed import Testbed
from ..noise.ensemble import Member
from ..noise.measure import Errors, Sample
from ..noise.rms import rms
from .candidate import Candidate
from .projection import direction, rerun


@dataclass(frozen=True, eq=False)
class Residual:
    """Of one request: the error less the mutant's direction, and the mutant's own noise."""

    error: Array  # [rows, vocab], in units of noise
    noise: Array  # [rows, 1], in the same units; 1 where the mutant does nothing
    shown: Array  # [rows, vocab] of bool


def residual_of_own_noise(
    samples: Sequence[Sample], testbed: Testbed, candidate: Candidate, members: Sequence[Member]
) -> float:
    """Return the rms of what is left, row by row, or over all rows together if that is less.

    Both, because a bug that rounds has noise in a few rows only, where a number fell to the other side, and in which
    rows is chance: an engine that has the bug is far off in a row wherever the two honest runs did not round over."""
    residuals = [one for sample in samples for one in _residuals(sample, testbed, candidate, members)]
    if not residuals or not all(np.isfinite((one.error / one.noise)[one.shown]).all() for one in residuals):
        return float("inf")
    return float(np.sqrt(min(_row_by_row(residuals), _together(residuals))))


def _row_by_row(residuals: Sequence[Residual]) -> float:
    """Return the mean square of the errors, each in units of its row's noise."""
    scaled = [(one.error / one.noise)[one.shown] for one in residuals]
    return sum(float(np.sum(errors**2)) for errors in scaled) / sum(errors.size for errors in scaled)


def _together(residuals: Sequence[Residual]) -> float:
    """Return the mean square of all errors over the mean square of all noise."""
    noise = sum(float(np.sum(one.noise**2 * one.shown)) for one in residuals)
    return sum(float(np.sum(one.error[one.shown] ** 2)) for one in residuals) / noise


def _residuals(sample: Sample, testbed: Testbed, candidate: Candidate, members: Sequence[Member]) -> list[Residual]:
    make = candidate.mutant.make
    directions = direction(make, sample, testbed)
    runs = [rerun(make, sample, testbed, member.precision) for member in members[:2]]
    residuals = []
    for i, (exchange, raw, shift) in enumerate(zip(sample.counted, sample.raws, directions, strict=True)):
        if raw is None or shift is None:
            continue
        if candidate.only and exchange.adapter not in candidate.only.split(" and "):
            shift = np.zeros_like(shift)
        error = raw.error / raw.unit[:, None] - shift
        residuals.append(Residual(error, _noise(raw, shift, [run[i] for run in runs]), raw.view.shown))
    return residuals


def _noise(raw: Errors, shift: Array, runs: Sequence[Array | None]) -> Array:
    """Return the rms [rows, 1] of the mutant's honest runs about its exact answer; no less than that of the truth's."""
    noise = np.ones_like(raw.unit)[:, None]
    if not np.any(shift):
        return noise
    errors = np.stack(
        [raw.view.of(np.where(np.isfinite(run), run, 0.0)) - raw.exact for run in runs if run is not None]
    )
    errors = errors / raw.unit[None, :, None] - shift[None]
    return np.maximum(noise, rms(errors, axis=(0, 2))[:, None])
