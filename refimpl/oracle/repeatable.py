"""Is the same question answered the same way twice? Not where dropout was left on, by a race, or from stale memory."""

from collections.abc import Sequence

import numpy as np

from ..arrays import Array
from ..engines.interface import EngineError, EngineResponse
from .engine_driver import EngineDriver
from .noise.measure import ErrorRatios
from .noise.rms import rms
from .noise.verdict import Thresholds
from .reports.result import PlayedCase


def ask_twice(driver: EngineDriver, played: Sequence[PlayedCase], thresholds: Thresholds) -> list[str]:
    """Ask the first batch once more; return a line if the two answers are farther apart than rounding is, or []."""
    first = next((one for one in played if one.case.stateless and any(ratios.unit.size for ratios in one.ratios)), None)
    if first is None:
        return []
    before = driver.exchanges(first.case, first.settings)
    try:
        after = driver.exchanges(first.case, first.settings, kept_in="second answers")
    except EngineError as error:
        return [f"while {first.case.name} was asked a second time: {error}"]
    distances = [
        distance(exchange.response, again.response, ratios)
        for exchange, again, ratios in zip(before, after, first.ratios, strict=True)
    ]
    worst = max(distances)
    if worst < thresholds.ratio:
        return []
    size = f"{worst:.3g} x noise apart" if np.isfinite(worst) else "different in what they are"
    return [f"not repeatable: {first.case.name} was asked twice, and the answers are {size}"]


def distance(response: EngineResponse, again: EngineResponse, ratios: ErrorRatios) -> float:
    """Return how far two answers to one request are apart, in units of the noise of its rows; inf for other tokens, or
    for an error in place of one of them. 0 where both are errors: neither is an answer."""
    if response.error or again.error:
        return 0.0 if response.error and again.error else float("inf")
    rows, rows_again = numbers(response), numbers(again)
    if rows is None or rows_again is None or rows.shape != rows_again.shape or len(rows) != len(ratios.unit):
        return 0.0 if response.token_ids == again.token_ids else float("inf")
    return float((rms(rows - rows_again, axis=1) / ratios.unit).max(initial=0.0))


def numbers(response: EngineResponse) -> Array | None:
    """Its logits or log-probabilities, [rows, vocab]; None if it shows neither for the whole vocabulary."""
    rows = response.logits if response.logits is not None else response.logprobs
    return None if rows is None else np.asarray(rows, np.float64)
