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
from .tables import CannotRun, Outputs, Tested
from .units import rms
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


def verify(vectors: Iterable[Vector], tested: Tested, dtype: str = "float32") -> Iterator[Verdict]:
    """Each vector's verdict, one after another."""
    for v in vectors:
        yield judge(v, tested, dtype)


def judge(v: Vector, tested: Tested, dtype: str) -> Verdict:
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
    found = [distance(*shown(name, wanted, outputs, dtype), outputs, dtype) for name, wanted in v.outputs.items()]
    worst = max(found, key=lambda d: d.share)
    return Verdict(
        v, "pass" if all(d.share <= 1 for d in found) else "fail", max(d.noise for d in found), worst.share, worst.why
    )


def shown(name: str, wanted: Output, outputs: Outputs, dtype: str) -> tuple[str, Output]:
    """What is compared: logits, or log-probabilities where those are given.

    If no logit is off by more than b, the logarithm of the sum of their exponentials is off by at most b as well: every
    log-probability by 2 b, and their rms by b more than that of the logits."""
    other = name.replace(".logits", ".logprobs")
    if name in outputs or other == name or other not in outputs:
        return name, wanted
    bound, noise = wanted.bound[dtype], wanted.noise[dtype]
    limit = noise.limit + float(bound.max())
    return other, replace(
        wanted, value=log_softmax(wanted.value), bound={dtype: 2 * bound}, noise={dtype: replace(noise, limit=limit)}
    )


def distance(name: str, wanted: Output, outputs: Outputs, dtype: str) -> Distance:
    """One output against what it should be. A NaN is infinitely far off."""
    far = float("inf")
    if name not in outputs:
        return Distance(far, far, f"{name} is missing; the answer has {', '.join(sorted(outputs)) or 'nothing'}")
    found = np.asarray(outputs[name])
    if wanted.value.dtype.kind == "i":
        same = found.shape == wanted.value.shape and bool((found == wanted.value).all())
        return (
            Distance(0.0, 0.0)
            if same
            else Distance(far, far, f"{name} is {found.tolist()}, not {wanted.value.tolist()}")
        )
    value, bound = wanted.value.astype(np.float64), np.broadcast_to(wanted.bound[dtype], wanted.value.shape)
    if wanted.axes[0] == "rows" and found.ndim == 2:  # the last rows count; the first ones may not have been computed
        rows = min(len(found), len(value))
        found, value, bound = found[len(found) - rows :], value[len(value) - rows :], bound[len(bound) - rows :]
    if found.shape != value.shape or value.shape[0] < min_rows(name, outputs, wanted):
        return Distance(far, far, f"{name} has shape {list(found.shape)}, not {list(wanted.value.shape)}")
    error = found.astype(np.float64) - value
    if not np.isfinite(error).all():
        where = [int(i) for i in np.argwhere(~np.isfinite(error))[0]]
        return Distance(far, far, f"{name} at {where} is {found[tuple(where)]}")
    allowed, limit, unit = bound, wanted.noise[dtype].limit, wanted.noise[dtype].unit
    shares = ratio(np.abs(error), allowed)
    most, whole = float(shares.max(initial=0.0)), float(ratio(np.asarray(rms(error)), np.asarray(limit)))
    noise = float(ratio(np.asarray(rms(error)), np.asarray(unit)))
    share = max(most, whole)
    if share <= 1:
        return Distance(noise if unit else share, share)
    if most > 1:
        at = tuple(int(i) for i in np.unravel_index(int(shares.argmax()), shares.shape))
        why = f"{name} at {list(at)} is {found[at]:.9g}, not {value[at]:.9g}: off by {abs(error[at]):.3g}, "
        return Distance(noise, share, why + f"the bound is {allowed[at]:.3g}")
    return Distance(noise, share, f"{name}: rms error {rms(error):.3g}, the limit is {limit:.3g}")


def min_rows(name: str, outputs: Outputs, wanted: Output) -> int:
    """All of them; of logits, those of produced tokens, and one at least."""
    if wanted.axes[0] != "rows":
        return len(wanted.value)
    produced = outputs.get(f"{name.rpartition('.')[0]}.token_ids")
    return 1 if produced is None else max(1, len(produced))


def ratio(x: Array, allowed: Array) -> Array:
    """x / allowed; 0 where both are 0, infinite where only the second is. Never NaN for finite numbers."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(x == 0, 0.0, np.where(allowed == 0, np.inf, x / np.where(allowed == 0, 1.0, allowed)))
