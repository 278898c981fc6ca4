"""How far from the truth one number of a step may be: a first-order bound, computed from the data.

    c * 2^-24 * sqrt(K) * sum |a||b|     for a sum of K products in float32, in whatever order (c = 4; the square root
                                         because rounding errors have both signs: Higham & Mary 2019)
    half an ulp of T                     wherever a number may be rounded to T, carried through what comes after

Every rounding that is known of some engine is allowed for: the rank-r intermediate, the delta, the scale folded into B;
q / sqrt(head_dim), scores and probabilities. What is only copied has the bound 0: it must be met bit for bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array

SUM_FACTOR = 4.0
UNIT_ROUNDOFF = 2.0**-24  # half an ulp of 1 in float32
HALF_ULP = {"float32": (UNIT_ROUNDOFF, 2.0**-150), "float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}


def half_ulp(x: Array, dtype: str) -> Array:
    """The most by which rounding x to the type can change it."""
    relative, absolute = HALF_ULP[dtype]
    return np.maximum(np.abs(x) * relative, absolute)


@dataclass(frozen=True, eq=False)
class Near:
    """A result in float64, and how far off one that was honestly computed may be."""

    value: Array
    off: Array

    def rounded(self, dtype: str) -> "Near":
        """After a rounding to the type: the same value, half an ulp further off."""
        return Near(self.value, self.off + half_ulp(np.abs(self.value) + self.off, dtype))

    def plus(self, other: "Near") -> "Near":
        """The sum, taken in float32."""
        value = self.value + other.value
        return Near(value, self.off + other.off + UNIT_ROUNDOFF * np.abs(value))

    def times(self, factor: Array | float) -> "Near":
        """Multiplied by a given float32 number, in float32."""
        value = self.value * factor
        return Near(value, self.off * np.abs(factor) + UNIT_ROUNDOFF * np.abs(value))


def exact(x: Array) -> Near:
    """Numbers that are given."""
    return Near(x.astype(np.float64), np.zeros(x.shape))


def product(x: Near, y: Near) -> Near:
    """a @ b.T, summed up in float32."""
    rounding = SUM_FACTOR * UNIT_ROUNDOFF * math.sqrt(max(1, x.value.shape[-1])) * (np.abs(x.value) @ np.abs(y.value).T)
    carried = x.off @ np.abs(y.value).T + np.abs(x.value) @ y.off.T + x.off @ y.off.T
    return Near(x.value @ y.value.T, rounding + carried)


def lora_row(
    y: Array, x: Array, adapters: Sequence[tuple[Array, Array, Array | None, float, float]], dtype: str
) -> Array:
    """The bound of one row y + sum of weight * scale * (B A x + bias): an (A, B, bias, scale, weight) for each."""
    total = exact(y)
    for A, B, bias, scale, weight in adapters:
        low = product(exact(x[None]), exact(A)).rounded(dtype)
        folded = exact(B * scale).rounded(dtype)  # or the scale comes last: then this is more than is needed
        delta = product(low, folded)
        if bias is not None:
            delta = delta.plus(exact(bias[None] * scale).rounded(dtype))
        delta = Near(delta.value * weight, delta.off * abs(weight) + 3 * UNIT_ROUNDOFF * np.abs(delta.value * weight))
        total = total.plus(Near(delta.value[0], delta.off[0]).rounded(dtype)).rounded(dtype)
    return total.off


def attention_row(q: Array, keys: Array, values: Array, dtype: str) -> Array:
    """The bound of one query [head_dim] over its keys and values [n, head_dim].

    If every score is off by at most d_j, the probabilities are p_j e^(d_j) / sum p_k e^(d_k), and the result is off by
    at most sum p_j (e^(d_j) - 1) |v_j - out| / sum p_k e^(-d_k)."""
    n, head_dim = keys.shape
    raw = product(exact(q[None]), exact(keys))
    if dtype != "float32":  # q / sqrt(head_dim) may be rounded before the product
        raw = Near(raw.value, raw.off + HALF_ULP[dtype][0] * (np.abs(q[None]) @ np.abs(keys).T))
    raw = raw.rounded(dtype)
    scores = Near(raw.value / math.sqrt(head_dim), raw.off / math.sqrt(head_dim)).rounded(dtype)
    score, score_off = scores.value[0], scores.off[0]
    p = np.exp(score - score.max())
    p /= p.sum()
    # exp itself, and the sum of the probabilities
    score_off = score_off + UNIT_ROUNDOFF * (4 + 2 * np.abs(score - score.max()) + math.sqrt(n) * SUM_FACTOR)
    out = p @ values
    moved = (p * np.expm1(score_off)) @ np.abs(values - out) / (p @ np.exp(-score_off))
    stored = half_ulp(p, dtype) @ np.abs(values) if dtype != "float32" else 0.0
    # Rounded probabilities may be normalised before or after: their sum is then off as well.
    lost = half_ulp(p, dtype).sum() * np.abs(out) if dtype != "float32" else 0.0
    summed = SUM_FACTOR * UNIT_ROUNDOFF * math.sqrt(n) * (p @ np.abs(values))
    return Near(out, moved + stored + lost + summed).rounded(dtype).off
