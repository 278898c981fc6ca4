"""The value of a continuous parameter that explains an error: where the coefficient of its direction is 1.

At k = 1 nothing is wrong. A step k has a coefficient c: by so much must it be longer, were the logits linear in it, so
that the next step is 1 + c (k - 1). They are not quite linear: the secant takes what is left of k - next to zero.
"""

from collections.abc import Callable

import numpy as np

FIRST = 1.001  # a step so small that it is linear
FAR = 64.0  # no factor is looked for beyond this
STEPS = 12


def fit(coefficient: Callable[[float], float]) -> float:
    """The fixed point; the last value that was tried, where there is none."""
    k, before = FIRST, (0.0, 0.0)
    for step in range(STEPS):
        c = coefficient(k)
        if not np.isfinite(c) or abs(c - 1) < 1e-12:
            return k
        off = (c - 1) * (k - 1)  # next - k
        slope = (off - before[1]) / (k - before[0]) if step > 1 and k != before[0] else -1.0
        before, move = (k, off), -off / slope if slope else off
        k = float(np.clip(k + move, -FAR, FAR))
        if k in (1.0, before[0]):
            return k
    return k
