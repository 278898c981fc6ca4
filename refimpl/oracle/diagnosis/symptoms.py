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
from ..cases.case import Case, Exchange, request
from ..cases.testbed import Testbed
from ..noise.measure import ErrorRatios, Errors, Sample
from ..noise.verdict import Thresholds, Verdict
from .fit import fit


@dataclass(frozen=True)
class Symptom:
    """One thing that was found, and how often."""

    what: str
    count: int = 1  # of how many failed requests it is true
    of: int = 1


def symptoms_of(
    sample: Sample, judged: Sequence[Verdict], measured: Sequence[ErrorRatios], testbed: Testbed, known: Thresholds
) -> list[str]:
    """Of one case: a line for each thing that is true of a request that failed, in order; repeated for each request."""
    found: list[str] = []
    failed = [i for i, j in enumerate(judged) if j.verdict == "fail"]
    for i in failed:
        e, raw, m = sample.counted[i], sample.raws[i], measured[i]
        if m.problem:
            found.append(f"no answer: {m.problem}")
            continue
        if raw is None:
            continue
        found += _of_one(sample, i, e, raw, m, testbed, known)
    if any(sample.counted[i].adapter is None for i in failed):
        found.append("base rows are wrong")
    return found


def company(case: Case, e: Exchange) -> list[str]:
    """Of a request that is answered well alone: what it takes for it to go wrong, in the smallest case found."""
    found = []
    if len(case.runs[e.run].asks) > 1:
        found.append(f"right when asked alone, wrong in a batch of {len(case.runs[e.run].asks)}")
    if len(case.steps) > 1:
        found.append(f"right in a fresh engine, wrong after {len(case.steps) - 1} other steps")
    before = [a for run in case.runs[: e.run + 1] for a in run.asks if a is not e.ask]
    shared = max(((_common(a, e.ask), a) for a in before), key=lambda x: x[0], default=(0, e.ask))
    if shared[0] > 1 and (shared[1].adapter, shared[1].adapter_weights) != (e.ask.adapter, e.ask.adapter_weights):
        found.append(f"its first {shared[0]} tokens were asked before, of {shared[1].adapter or 'the base'}")
    return found


def _common(a: EngineRequest, b: EngineRequest) -> int:
    """How many tokens they begin with in common."""
    same = [x == y for x, y in zip(a.prompt_ids, b.prompt_ids, strict=False)]
    return same.index(False) if False in same else len(same)


def tally(lines: Sequence[str], failed: int) -> list[Symptom]:
    """The most frequent first."""
    counts = {line: lines.count(line) for line in dict.fromkeys(lines)}
    return [Symptom(line, n, failed) for line, n in sorted(counts.items(), key=lambda item: -item[1])]


def _of_one(
    sample: Sample, i: int, e: Exchange, raw: Errors, m: ErrorRatios, testbed: Testbed, known: Thresholds
) -> list[str]:
    fits = _fits(raw, known)
    text = request(e, testbed).prompt_ids
    found = []
    if e.adapter is not None and fits(_rows(testbed, text, None, raw)):
        return ["the base answered"]
    for key in testbed.adapters:
        if key != e.adapter and fits(_rows(testbed, text, [(testbed.adapters[key], 1.0)], raw)):
            asked = any(o.adapter == key and o.run == e.run for o in sample.counted)
            place = "in the same batch" if asked else "not in this batch"
            return [f"another adapter answered ({place})"]
    if len(e.adapters) == 1 and not testbed.adapters[e.adapters[0][0]].replaced:
        k = _weight(testbed, e, raw)
        if k is not None and fits(_rows(testbed, text, [(testbed.adapters[e.adapters[0][0]], k)], raw)):
            return [f"the adapter's delta is {k:.3g} times as large as it should be"]
    if shift := _shifted(raw, known):
        places, way = f"{abs(shift)} place{'s' if abs(shift) > 1 else ''}", "later" if shift > 0 else "earlier"
        return [f"every row is that of the token {places} {way}"]
    wrong = np.flatnonzero(~(m.ratio < known.ratio)) + m.first
    prompt = len(e.ask.prompt_ids)
    if wrong.size and wrong[0] > m.first:
        first = int(wrong[0])
        if first == prompt:
            found.append("the prompt is right; wrong from the first decode step on")
        elif (np.diff(wrong) == 1).all() and wrong[-1] == m.first + len(m.ratio) - 1:
            found.append(f"right up to some place, wrong from there on (here from {first})")
    return found


def _fits(raw: Errors, known: Thresholds) -> Callable[[Array], bool]:
    """Is this other answer the one that the engine gave, to within its noise?"""
    limit = known.ratio

    def fits(rows: Array) -> bool:
        left = raw.view.of(rows) - raw.exact - raw.error
        ratio = (
            np.sqrt(np.sum(np.where(raw.view.shown, left, 0) ** 2, axis=-1) / raw.view.shown.sum(axis=-1)) / raw.unit
        )
        return bool((ratio < limit).all())

    return fits


def _rows(testbed: Testbed, text: Sequence[int], adapter: object, raw: Errors) -> Array:
    """What another adapter answers; NaN, which nothing is like, where it knows not these words, or not as many."""
    other = Request(text, adapter)  # type: ignore[arg-type]
    if max(text) >= vocab_size(other, testbed.exact.config) or logit_width(other, testbed.exact) != raw.vocab:
        return np.full_like(raw.logits, np.nan)
    return logits(testbed.exact, [other])[0][raw.rows]


def _weight(testbed: Testbed, e: Exchange, raw: Errors) -> float | None:
    """The weight on the adapter that explains the answer best."""
    adapter, text = testbed.adapters[e.adapters[0][0]], request(e, testbed).prompt_ids

    def coefficient(k: float) -> float:
        d = (raw.view.of(_rows(testbed, text, [(adapter, k)], raw)) - raw.exact) / raw.unit[:, None]
        length = float(np.sum(d * d))
        return float(np.sum(raw.error / raw.unit[:, None] * d)) / length if length else float("nan")

    k = fit(coefficient)
    return k if np.isfinite(k) and k != 1 else None


def _shifted(raw: Errors, known: Thresholds) -> int:
    """By how many places the rows stand too early or too late; 0 if that is not it."""
    shown = raw.exact + raw.error
    n = len(shown)
    for shift in (1, -1, 2, -2):
        if n <= abs(shift) + 1:
            continue
        a, b = (slice(0, n - shift), slice(shift, n)) if shift > 0 else (slice(-shift, n), slice(0, n + shift))
        left = np.sqrt(np.mean((shown[a] - raw.exact[b]) ** 2, axis=-1)) / raw.unit[b]
        away = np.sqrt(np.mean((raw.exact[a] - raw.exact[b]) ** 2, axis=-1)) / raw.unit[b]
        if (left < known.ratio).all() and not (away < known.ratio).any():
            return shift
    return 0
