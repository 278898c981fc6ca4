"""The value of a continuous parameter that explains an error: where the coefficient of its direction is 1.

Fixed-point iteration: at k = 1 nothing is wrong. If logits were linear in k, the true factor would be 1 + c (k - 1), c
being the coefficient at k. They nearly are; a secant step corrects the rest.
"""

from collections.abc import Callable

import numpy as np

FIRST = 1.001  # the first k; larger: the first step is less linear, smaller: it drowns in rounding
FAR = 64.0  # no factor is looked for beyond this; larger: a fit that runs away takes longer to be seen
STEPS = 12  # of fit(); larger: slower where there is no fixed point


class Secant:
    """One factor k on its way to where the coefficient is 1."""

    def __init__(self) -> None:
        self.k = FIRST
        self._previous: tuple[float, float] | None = None  # k, and the step from there were the logits linear

    def advance(self, coefficient: float) -> float:
        """Return the next k, given the coefficient of the direction at this one.

        The first two steps are those of the linear case: two values at different k are needed for a slope, and the
        one at FIRST is too near 1 for it."""
        step, slope = (coefficient - 1) * (self.k - 1), -1.0
        if self._previous is not None and self._previous[0] not in (FIRST, self.k):
            slope = (step - self._previous[1]) / (self.k - self._previous[0])
        self._previous = self.k, step
        self.k = float(np.clip(self.k - step / slope if slope else self.k + step, -FAR, FAR))
        return self.k


def fit(coefficient: Callable[[float], float]) -> float:
    """Return the k whose coefficient is 1; the last value that was tried, where there is none."""
    secant = Secant()
    for _ in range(STEPS):
        k = secant.k
        c_of_k = coefficient(k)
        if not np.isfinite(c_of_k) or abs(c_of_k - 1) < 1e-12:
            return k
        if secant.advance(c_of_k) in (1.0, k):
            break
    return secant.k
