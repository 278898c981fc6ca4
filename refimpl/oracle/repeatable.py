"""Is the same question answered the same way twice? Not where dropout was left on, by a race, or from stale memory."""

from collections.abc import Sequence

import numpy as np

from ..arrays import Array
from ..engines.interface import EngineError, EngineResponse
from .bugs.preconditions import spread
from .cases.case import Exchange
from .engine_driver import EngineDriver
from .noise.ensemble import Member
from .noise.measure import ErrorRatios, measure
from .noise.rms import rms
from .noise.verdict import Thresholds, judge, overall
from .reports.result import PlayedCase

SECOND = "second answers"  # the folder that keeps them
NOT_REPEATABLE = "not repeatable"  # so begins the line about it
TWICE = 16  # batches that are asked twice; larger: slower where an engine is slow, and what is rare is seen more often


def ask_twice(
    driver: EngineDriver,
    played: Sequence[PlayedCase],
    thresholds: Thresholds,
    members: Sequence[Member],
) -> list[str]:
    """Ask batches from all over the campaign once more, the first one among them, those that failed before others.

    Return a line about those whose two answers are farther apart than rounding is, or []. Where the second answer is
    wrong and the first was right, the case fails: its ratios and verdicts are from then on those of the second."""
    readable = [one for one in played if one.case.stateless and any(ratios.unit.size for ratios in one.ratios)]
    failed = [one for one in readable[1:] if one.verdict == "fail"]
    others = [one for one in readable[1:] if one.verdict != "fail"]
    chosen = readable[:1] + spread(failed, TWICE // 2)
    chosen += spread(others, TWICE - len(chosen))
    apart: list[tuple[float, str]] = []
    for number, one in enumerate(chosen, 1):
        before = driver.exchanges(one.case, one.settings)
        try:
            after = driver.exchanges(one.case, one.settings, kept_in=SECOND)
        except EngineError as error:
            return [f"while {one.case.name} was asked a second time: {error}"]
        one.asked_twice = number
        worst = max(
            distance(exchange.response, again.response, ratios)
            for exchange, again, ratios in zip(before, after, one.ratios, strict=True)
        )
        if not worst < thresholds.ratio:
            apart.append((worst, one.case.name))
            if one.verdict == "pass":
                _judge_second(driver, one, after, thresholds, members)
    if not apart:
        return []
    worst, name = max(apart)
    size = f"{worst:.3g} x noise apart" if np.isfinite(worst) else "different in what they are"
    count = f" ({len(apart)} of the {len(chosen)} batches that were)" if len(chosen) > 1 else ""
    return [f"{NOT_REPEATABLE}: {name} was asked twice, and the answers are {size}{count}"]


def _judge_second(
    driver: EngineDriver,
    one: PlayedCase,
    after: Sequence[Exchange],
    thresholds: Thresholds,
    members: Sequence[Member],
) -> None:
    """Put the second answers in the place of the first, if they are wrong."""
    ratios, _ = measure(one.case, after, driver.testbed, members)
    verdicts = [judge(of_request, thresholds) for of_request in ratios]
    if overall([verdict.verdict for verdict in verdicts]) == "fail":
        one.ratios, one.verdicts, one.is_second = ratios, verdicts, True
        driver.keep(one.case, after)


def distance(response: EngineResponse, again: EngineResponse, ratios: ErrorRatios) -> float:
    """Return how far two answers to one request are apart, in units of the noise of its rows; inf for other tokens, or
    for an error in place of one of them. 0 where both are errors: neither is an answer."""
    if response.error or again.error:
        return 0.0 if response.error and again.error else float("inf")
    rows, rows_again = numbers(response), numbers(again)
    if rows is None or rows_again is None or rows.shape != rows_again.shape or len(rows) != len(ratios.unit):
        return 0.0 if response.token_ids == again.token_ids else float("inf")
    apart = rows - rows_again
    return float((rms(apart - apart.mean(axis=1, keepdims=True), axis=1) / ratios.unit).max(initial=0.0))


def numbers(response: EngineResponse) -> Array | None:
    """Its logits or log-probabilities, [rows, vocab]; None if it shows neither for the whole vocabulary."""
    rows = response.logits if response.logits is not None else response.logprobs
    return None if rows is None else np.asarray(rows, np.float64)
