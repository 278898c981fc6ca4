"""What the engine did and what the named bug does, side by side, in units of noise: the picture in the report.

Two views of one case. From far: every request, place by place, by the rms of its rows. From near: one of the requests
that failed, its places by tokens of the vocabulary, with the sign of the error: the fingerprint of a bug.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array
from ..bugs import Mutant
from ..bugs.preconditions import spread
from ..cases.case import Exchange
from ..cases.testbed import Testbed
from ..diagnosis.projection import direction
from ..noise.measure import Errors, Sample
from ..noise.rms import rms_shown
from ..noise.verdict import Thresholds

REQUESTS = 16  # that are drawn of one case; larger: lines too thin to be told apart
POSITIONS = 40  # of the request that is drawn from near; larger: a picture that no screen holds
TOKENS = 64  # of the vocabulary, in the same picture


@dataclass(frozen=True, eq=False)
class Line:
    """One request from far. Of an answer that was none there are no rows."""

    run: int
    index: int
    adapter: str | None
    first: int  # the place of the first row
    prompt: int  # tokens of the prompt: the row of the place before is the first that predicts an answer
    engine: Array  # [rows] rms of the error, in units of noise
    bug: Array | None  # [rows] the same of the bug alone
    residual: Array | None  # [rows] the same of what is left when the bug is taken out


@dataclass(frozen=True, eq=False)
class CloseUp:
    """One request from near. NaN where the engine shows nothing."""

    line: int  # which of the lines it is
    places: list[int]
    tokens: list[int]
    engine: Array  # [places, tokens] error, in units of noise
    bug: Array | None  # [places, tokens]
    residual: Array | None  # [places, tokens] engine - bug


@dataclass(frozen=True, eq=False)
class Picture:
    """One case from far, and one of its requests from near."""

    case: str
    mutant: str  # "" where none came near
    lines: list[Line]
    close_up: CloseUp | None


def picture(
    samples: Sequence[Sample], testbed: Testbed, thresholds: Thresholds, mutant: Mutant | None, only: str = ""
) -> Picture | None:
    """Return the picture of the sample that shows the most; None if nothing is readable.

    only: the adapter that the bug is confined to."""
    shifts = [_bug(sample, testbed, mutant, only) for sample in samples]
    worths = [
        [_worth(raw, shift, thresholds) for raw, shift in zip(sample.raws, of_sample, strict=True)]
        for sample, of_sample in zip(samples, shifts, strict=True)
    ]
    readable = [i for i, sample in enumerate(samples) if any(raw is not None for raw in sample.raws)]
    if not readable:
        return None
    most = max(readable, key=lambda i: sum(worths[i]))
    sample, shift, worth = samples[most], shifts[most], worths[most]
    requests = sorted(sorted(range(len(shift)), key=lambda i: -worth[i])[:REQUESTS])
    lines = [_line(sample.counted[i], sample.raws[i], shift[i]) for i in requests]
    near = max((i for i in requests if sample.raws[i] is not None), key=lambda i: worth[i], default=None)
    close = None if near is None else _close_up(requests.index(near), sample.raws[near], shift[near])
    return Picture(sample.case.name, "" if mutant is None else mutant.name, lines, close)


def _bug(sample: Sample, testbed: Testbed, mutant: Mutant | None, only: str) -> list[Array | None]:
    if mutant is None:
        return [None] * len(sample.raws)
    shifts = direction(mutant.make, sample, testbed)
    return [
        shift if shift is None or not only or exchange.adapter == only else np.zeros_like(shift)
        for exchange, shift in zip(sample.counted, shifts, strict=True)
    ]


def _worth(raw: Errors | None, shift: Array | None, thresholds: Thresholds) -> float:
    """Return how much a request shows: its rows that left the noise; below it, how far the bug moves it (under 1)."""
    if raw is None:
        return 0.0
    wrong = float(np.sum(~(rms_shown(_in_units(raw), raw.view.shown) < thresholds.ratio)))
    moved = 0.0 if shift is None else float(min(np.sum(np.nan_to_num(shift) ** 2), 1e300))
    return wrong + moved / (1 + moved)


def _in_units(raw: Errors) -> Array:
    """Return the engine's error [rows, vocab], in units of noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return raw.error / raw.unit[:, None]


def _line(exchange: Exchange, raw: Errors | None, shift: Array | None) -> Line:
    who = exchange.run, exchange.index, exchange.adapter
    if raw is None:
        return Line(*who, 0, len(exchange.request.prompt_ids), np.zeros(0), None, None)
    bug = None if shift is None else rms_shown(shift, raw.view.shown)
    residual = None if shift is None else rms_shown(_in_units(raw) - shift, raw.view.shown)
    engine = rms_shown(_in_units(raw), raw.view.shown)
    return Line(*who, raw.rows.start, len(exchange.request.prompt_ids), engine, bug, residual)


def _close_up(line: int, raw: Errors | None, shift: Array | None) -> CloseUp:
    """Draw positions and tokens from all over, where there are too many."""
    assert raw is not None
    shown = raw.view.shown
    rows, columns = spread(range(len(shown)), POSITIONS), spread(np.flatnonzero(shown.any(axis=0)).tolist(), TOKENS)

    def part(x: Array) -> Array:
        return np.where(shown, x, np.nan)[np.ix_(rows, columns)]

    places, tokens, engine = [i + raw.rows.start for i in rows], columns, _in_units(raw)
    if shift is None:
        return CloseUp(line, places, tokens, part(engine), None, None)
    return CloseUp(line, places, tokens, part(engine), part(shift), part(engine - shift))
