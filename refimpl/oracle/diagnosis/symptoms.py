"""What is wrong, where no mutant says why: symptoms, each of them computed.

For a request that failed: who else's answer is it? Is it the right one with another weight on the adapter? From which
place on? Does it go away when the request is asked alone?
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array
from ...engines.interface import EngineRequest
from ...model import logit_width, logits
from ...request import Request, vocab_size
from ..cases.case import Case, Exchange, teacher_forced
from ..cases.testbed import Testbed
from ..noise.measure import ErrorRatios, Errors, Sample
from ..noise.rms import rms, rms_shown
from ..noise.verdict import Thresholds, Verdict
from .fit import fit

NOT_A_TIE = 0.01  # of a row's range: a token may be chosen by numbers of a wider type than those that are shown
NOT_ONE = 0.005  # how far from 1 a factor is that is said: with three digits, it is not 1


@dataclass(frozen=True)
class Symptom:
    """A true sentence about failed requests, and of how many it is true."""

    what: str
    count: int = 1  # of how many failed requests it is true
    of: int = 1


def symptoms_of(
    sample: Sample, verdicts: Sequence[Verdict], ratios: Sequence[ErrorRatios], testbed: Testbed, thresholds: Thresholds
) -> list[str]:
    """Return, for one case, a line for each thing that is true of a request that failed; repeated for each request."""
    lines: list[str] = []
    failed = [i for i, verdict in enumerate(verdicts) if verdict.verdict == "fail"]
    for i in failed:
        exchange, raw, one = sample.counted[i], sample.raws[i], ratios[i]
        if one.problem:
            lines.append(f"no answer: {one.problem}")
            continue
        if raw is None:
            continue
        lines += _of_one(sample, i, exchange, raw, one, testbed, thresholds)
    if any(sample.counted[i].adapter is None and not ratios[i].problem for i in failed):
        lines.append("base rows are wrong")
    return lines


def company(case: Case, exchange: Exchange) -> list[str]:
    """Return what it takes for a request to go wrong that is answered well alone: what else the smallest case has."""
    lines = []
    if len(case.runs[exchange.run].requests) > 1:
        lines.append(f"right when asked alone, wrong in a batch of {len(case.runs[exchange.run].requests)}")
    if len(case.steps) > 1:
        lines.append(f"right in a fresh engine, wrong after {len(case.steps) - 1} other steps")
    before = [
        request for run in case.runs[: exchange.run + 1] for request in run.requests if request is not exchange.request
    ]
    shared = max(
        ((_common(request, exchange.request), request) for request in before),
        key=lambda x: x[0],
        default=(0, exchange.request),
    )
    if shared[0] > 1 and (shared[1].adapter, shared[1].adapter_weights) != (
        exchange.request.adapter,
        exchange.request.adapter_weights,
    ):
        lines.append(f"its first {shared[0]} tokens were asked before, of {shared[1].adapter or 'the base'}")
    return lines


def _common(first: EngineRequest, second: EngineRequest) -> int:
    """Return the length of the common prefix of two prompts."""
    same = [x == y for x, y in zip(first.prompt_ids, second.prompt_ids, strict=False)]
    return same.index(False) if False in same else len(same)


def tally(lines: Sequence[str], failed: int) -> list[Symptom]:
    """Count equal lines; return the most frequent first."""
    counts = {line: lines.count(line) for line in dict.fromkeys(lines)}
    return [Symptom(line, n, failed) for line, n in sorted(counts.items(), key=lambda item: -item[1])]


def _of_one(
    sample: Sample,
    i: int,
    exchange: Exchange,
    raw: Errors,
    ratios: ErrorRatios,
    testbed: Testbed,
    thresholds: Thresholds,
) -> list[str]:
    fits = _fits(raw, thresholds)
    text = teacher_forced(exchange, testbed.adapters).prompt_ids
    lines = []
    if exchange.adapter is not None and fits(_rows(testbed, text, None, raw)):
        return ["the base answered"]
    for key in testbed.adapters:
        if key != exchange.adapter and fits(_rows(testbed, text, [(testbed.adapters[key], 1.0)], raw)):
            is_here = any(other.adapter == key and other.run == exchange.run for other in sample.counted)
            where = "in the same batch" if is_here else "not in this batch"
            return [f"another adapter answered ({where})"]
    if len(exchange.adapters) == 1 and testbed.adapters[exchange.adapters[0][0]].can_be_summed:
        k = _weight(testbed, exchange, raw)
        if k is not None and fits(_rows(testbed, text, [(testbed.adapters[exchange.adapters[0][0]], k)], raw)):
            return [f"the adapter's delta is {k:.3g} times as large as it should be"]
    if greedy := not_greedy(exchange):
        return [greedy]
    if swapped(sample, i, thresholds):
        return ["the answer is that of another request of its batch"]
    if shift := _shifted(raw, thresholds):
        places, way = f"{abs(shift)} place{'s' if abs(shift) > 1 else ''}", "later" if shift > 0 else "earlier"
        return [f"every row is that of the token {places} {way}"]
    wrong = np.flatnonzero(~(ratios.ratio < thresholds.ratio)) + ratios.first
    prompt = len(exchange.request.prompt_ids)
    if wrong.size and wrong[0] > ratios.first:
        first = int(wrong[0])
        if first == prompt:
            lines.append("the prompt is right; wrong from the first decode step on")
        elif (np.diff(wrong) == 1).all() and wrong[-1] == ratios.first + len(ratios.ratio) - 1:
            lines.append("right up to some place, wrong from there on")
    return lines


def _fits(raw: Errors, thresholds: Thresholds) -> Callable[[Array], bool]:
    """Is this other answer the one that the engine gave, to within its noise?"""
    limit = thresholds.ratio

    def fits(rows: Array) -> bool:
        residual = raw.view.of(rows) - raw.exact - raw.error
        return bool((rms_shown(residual, raw.view.shown) / raw.unit < limit).all())

    return fits


def _rows(testbed: Testbed, text: Sequence[int], adapter: object, raw: Errors) -> Array:
    """Return what another adapter answers to the text; NaN, which fits nothing, where its vocabulary is another one."""
    other = Request(text, adapter)  # type: ignore[arg-type]
    if max(text) >= vocab_size(other, testbed.exact.config) or logit_width(other, testbed.exact) != raw.vocab:
        return np.full_like(raw.logits, np.nan)
    return logits(testbed.exact, [other])[0][raw.rows]


def _weight(testbed: Testbed, exchange: Exchange, raw: Errors) -> float | None:
    """Return the weight on the adapter that explains the answer best; None if there is none, or if it is 1."""
    adapter, text = testbed.adapters[exchange.adapters[0][0]], teacher_forced(exchange, testbed.adapters).prompt_ids

    def coefficient(weight: float) -> float:
        shift = (raw.view.of(_rows(testbed, text, [(adapter, weight)], raw)) - raw.exact) / raw.unit[:, None]
        length = float(np.sum(shift * shift))
        return float(np.sum(raw.error / raw.unit[:, None] * shift)) / length if length else float("nan")

    weight = fit(coefficient)
    return weight if np.isfinite(weight) and abs(weight - 1) > NOT_ONE else None


def not_greedy(exchange: Exchange) -> str:
    """Return which produced token is not the one of its own row's largest number, by far; "" if each of them is."""
    response = exchange.response
    shown = response.logits if response.logits is not None else response.logprobs
    row = len(exchange.request.prompt_ids) - 1 - response.first_position  # of the first one
    if shown is None or row < 0:
        return ""
    for k, (token, numbers) in enumerate(zip(response.token_ids, shown[row:], strict=False)):
        best = int(np.argmax(numbers))
        with np.errstate(invalid="ignore"):  # a row that is no number is wrong in another way
            chosen = token >= len(numbers) or not numbers[best] - numbers[token] > NOT_A_TIE * np.ptp(numbers)
        if not chosen:
            return f"produced token {k} is not the largest of its own row: requests are greedy"
    return ""


def swapped(sample: Sample, i: int, thresholds: Thresholds) -> bool:
    """Are a request's rows those of another prompt of its batch, which go as far as that one has tokens?"""
    mine, raw = sample.counted[i], sample.raws[i]
    for other, theirs in zip(sample.counted, sample.raws, strict=True):
        n = len(other.request.prompt_ids)
        alike = other.request.prompt_ids == mine.request.prompt_ids and other.adapters == mine.adapters
        if raw is None or theirs is None or other.run != mine.run or alike or not 1 < n <= len(raw.exact):
            continue
        if raw.exact.shape[1] == theirs.exact.shape[1] and len(theirs.exact) >= n:
            residual = rms((raw.exact + raw.error)[:n] - theirs.exact[:n], axis=-1) / theirs.unit[:n]
            if (residual < thresholds.ratio).all():
                return True
    return False


def _shifted(raw: Errors, thresholds: Thresholds) -> int:
    """Return by how many positions the rows stand too early or too late; 0 if that is not it."""
    shown = raw.exact + raw.error
    n = len(shown)
    for shift in (1, -1, 2, -2):
        if n <= abs(shift) + 1:
            continue
        ours, theirs = (slice(0, n - shift), slice(shift, n)) if shift > 0 else (slice(-shift, n), slice(0, n + shift))
        residual = rms(shown[ours] - raw.exact[theirs], axis=-1) / raw.unit[theirs]
        distance = rms(raw.exact[ours] - raw.exact[theirs], axis=-1) / raw.unit[theirs]
        if (residual < thresholds.ratio).all() and not (distance < thresholds.ratio).any():
            return shift
    return 0
