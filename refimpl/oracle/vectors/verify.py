"""A vector's verdict: pass, fail, or skipped where what is under test has no such thing.

valid        every number within its bound, and the rms of all within the limit; a refusal fails
invalid      it has to be refused: any answer fails
acceptable   either
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ...arrays import Array
from ..noise.readout import log_softmax
from ..noise.rms import rms
from .systems import CannotRun, Outputs, SystemUnderTest
from .vector import Output, Vector, VectorError

ACCIDENTS = (LookupError, TypeError, AttributeError, NameError, ImportError, ArithmeticError, RecursionError)
"""Exceptions that come from a slip in the code under test. Whoever refuses an input says so with another one."""


@dataclass(frozen=True)
class Verdict:
    """One vector and what came of it."""

    vector: Vector
    verdict: str  # pass, fail, skipped
    noise: float = 0.0  # the largest rms error of its outputs in noise units; 0 of what has to be exact and is
    share: float = 0.0  # the largest error as a share of what is allowed: above 1 it fails
    why: str = ""


@dataclass(frozen=True)
class Distance:
    """One output, compared."""

    noise: float
    share: float
    why: str = ""


def verify(vectors: Iterable[Vector], tested: SystemUnderTest, dtype: str = "float32") -> Iterator[Verdict]:
    """Each vector's verdict, one after another."""
    for v in vectors:
        yield judge(v, tested, dtype)


def judge(v: Vector, tested: SystemUnderTest, dtype: str) -> Verdict:
    """One vector's verdict. VectorError and CannotRun are no refusal, and go through."""
    try:
        with np.errstate(all="ignore"):  # what becomes of a NaN is judged below
            outputs = tested(v, dtype)
    except (VectorError, CannotRun):
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        if isinstance(error, ACCIDENTS):
            return Verdict(v, "fail", share=np.inf, why=f"crashed ({message}), which is no refusal")
        return Verdict(v, "fail" if v.result == "valid" else "pass", why=f"refused ({message})")
    if outputs is None:
        return Verdict(v, "skipped", why="not computed by what is under test")
    if v.result == "invalid":
        return Verdict(v, "fail", share=np.inf, why="answered what has to be refused")
    distances = [
        distance(*comparable(name, expected, outputs, dtype), outputs, dtype) for name, expected in v.outputs.items()
    ]
    worst = max(distances, key=lambda one: one.share)
    noise = max(one.noise for one in distances)
    return Verdict(v, "pass" if worst.share <= 1 else "fail", noise, worst.share, worst.why)


def comparable(name: str, expected: Output, outputs: Outputs, dtype: str) -> tuple[str, Output]:
    """What is compared: logits, or log-probabilities where those are given.

    If no logit is off by more than b, the logarithm of the sum of their exponentials is off by at most b as well: every
    log-probability by 2 b, and their rms by b more than that of the logits."""
    other = name.replace(".logits", ".logprobs")
    if name in outputs or other == name or other not in outputs:
        return name, expected
    bound, noise = expected.bound[dtype], expected.noise[dtype]
    limit = noise.limit + float(bound.max())
    return other, replace(
        expected,
        value=log_softmax(expected.value),
        bound={dtype: 2 * bound},
        noise={dtype: replace(noise, limit=limit)},
    )


def distance(name: str, expected: Output, outputs: Outputs, dtype: str) -> Distance:
    """One output against what it should be. A NaN is infinitely far off."""
    far = float("inf")
    if name not in outputs:
        return Distance(far, far, f"{name} is missing; the answer has {', '.join(sorted(outputs)) or 'nothing'}")
    actual = np.asarray(outputs[name])
    if expected.value.dtype.kind == "i":
        same = actual.shape == expected.value.shape and bool((actual == expected.value).all())
        return (
            Distance(0.0, 0.0)
            if same
            else Distance(far, far, f"{name} is {actual.tolist()}, not {expected.value.tolist()}")
        )
    value, bound = expected.value.astype(np.float64), np.broadcast_to(expected.bound[dtype], expected.value.shape)
    if (
        expected.axes[0] == "rows" and actual.ndim == 2
    ):  # the last rows count; the first ones may not have been computed
        rows = min(len(actual), len(value))
        actual, value, bound = actual[len(actual) - rows :], value[len(value) - rows :], bound[len(bound) - rows :]
    if actual.shape != value.shape or value.shape[0] < min_rows(name, outputs, expected):
        return Distance(far, far, f"{name} has shape {list(actual.shape)}, not {list(expected.value.shape)}")
    error = actual.astype(np.float64) - value
    if not np.isfinite(error).all():
        where = [int(i) for i in np.argwhere(~np.isfinite(error))[0]]
        return Distance(far, far, f"{name} at {where} is {actual[tuple(where)]}")
    allowed, limit, unit = bound, expected.noise[dtype].limit, expected.noise[dtype].unit
    shares, off = ratio(np.abs(error), allowed), np.asarray(rms(error))
    worst_share, rms_share = float(shares.max(initial=0.0)), float(ratio(off, np.asarray(limit)))
    noise = float(ratio(off, np.asarray(unit)))
    share = max(worst_share, rms_share)
    if share <= 1:
        return Distance(noise if unit else share, share)
    if worst_share > 1:
        at = tuple(int(i) for i in np.unravel_index(int(shares.argmax()), shares.shape))
        why = f"{name} at {list(at)} is {actual[at]:.9g}, not {value[at]:.9g}: off by {abs(error[at]):.3g}, "
        return Distance(noise, share, why + f"the bound is {allowed[at]:.3g}")
    return Distance(noise, share, f"{name}: rms error {off:.3g}, the limit is {limit:.3g}")


def min_rows(name: str, outputs: Outputs, expected: Output) -> int:
    """All of them; of logits, those of produced tokens, and one at least."""
    if expected.axes[0] != "rows":
        return len(expected.value)
    produced = outputs.get(f"{name.rpartition('.')[0]}.token_ids")
    return 1 if produced is None else max(1, len(produced))


def ratio(x: Array, allowed: Array) -> Array:
    """x / allowed; 0 where both are 0, infinite where only the second is. Never NaN for finite numbers."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(x == 0, 0.0, np.where(allowed == 0, np.inf, x / np.where(allowed == 0, 1.0, allowed)))
