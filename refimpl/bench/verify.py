"""Is it right before it is timed? Every number against float64, with a bound computed from the data.

4 * 2^-24 * sqrt(K) * sum |a||b|     for a sum of K products in float32, in whatever order
half an ulp of T                     where a number is rounded to T, carried through what is computed from it
"""

import math
from typing import Any

import numpy as np

from ..arrays import Array, namespace
from ..cuda.launch import widened
from ..errors import LoracleError
from .case import SCALE, Case

TERMS, ROUNDOFF = 4.0, 2.0**-24
AT_ONCE = 512  # rows, in float64
HALF_ULP = {"float32": (ROUNDOFF, 2.0**-150), "float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}


class WrongResult(LoracleError):
    """What is wrong is not timed."""


def half_ulp(x: Array, dtype: str) -> Array:
    """The most by which rounding x to the type can change it."""
    relative, absolute = HALF_ULP[dtype]
    return namespace(x).maximum(abs(x) * relative, absolute)


def expected(case: Case, i: int, adapter: int, rows: Array, before: Array) -> tuple[Array, Array]:
    """(what the rows of one adapter must hold, how far off a right kernel may be), in float64."""
    dtype = case.point.dtype

    def wide(x: Array) -> Array:
        return widened(x, dtype).astype(np.float64)

    x, A, B, y = wide(case.x[i][rows]), wide(case.A[adapter]), wide(case.B[adapter]), wide(before[rows])
    low = x @ A.T
    low_off = TERMS * ROUNDOFF * math.sqrt(A.shape[1]) * (abs(x) @ abs(A).T)
    low_off = low_off + half_ulp(abs(low) + low_off, dtype)
    delta = low @ B.T
    off = TERMS * ROUNDOFF * math.sqrt(A.shape[0]) * (abs(low) @ abs(B).T) + low_off @ abs(B).T
    sure = y + delta * SCALE
    off = off * SCALE + 3 * ROUNDOFF * abs(delta * SCALE) + ROUNDOFF * abs(sure)
    return sure, off + half_ulp(abs(sure) + off, dtype)


def verify(case: Case, i: int = 0) -> float:
    """Run one set. The largest error as a share of its bound, at most 1; WrongResult if any number is further off."""
    before = case.y[i].copy()
    after = case.run(i, before.copy())
    xp: Any = namespace(after)
    ids = case.ids[i]
    wrong, worst = xp.zeros((), np.int64), xp.zeros(())
    for adapter in np.unique(ids):
        all_rows = np.flatnonzero(ids == adapter)
        for start in range(0, len(all_rows), AT_ONCE):
            rows = xp.asarray(all_rows[start : start + AT_ONCE])
            sure, off = expected(case, i, int(adapter), rows, before)
            share = abs(widened(after[rows], case.point.dtype).astype(np.float64) - sure) / off
            wrong += (~(share <= 1)).sum()
            worst = xp.maximum(worst, share.max())
    if int(wrong):
        raise WrongResult(
            f"{case.point}: {int(wrong)} of {after.size} numbers are further from the definition than rounding "
            f"explains (the worst by {float(worst):.3g} times the bound): nothing is timed"
        )
    return float(worst)
