"""How far from the truth an honest engine may be: measured, for each request, on honest runs of our own.

One run of the reference in the engine's type is one honest answer; another one rounds at other places, or sums in
another order. The members of this ensemble differ from the truth by about as much as the engine should. Their rms is
the noise unit. Where an engine rounds is often unknown, and the order of sums alone barely moves a bfloat16 result
(products are summed in float32), so that the members differ in their rounding points as well.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ...arrays import Array, Precision, rounded
from ...layers import linear
from ...model import logits
from ...ops import NUMPY, Ops
from ...request import Request
from ...tensorrt_llm.backend import backend
from ...weights import Model


def _plain() -> Ops:
    return NUMPY


@dataclass(frozen=True)
class Member:
    """One honest way to compute."""

    name: str
    precision: Precision
    make: Callable[[], Ops] = _plain


def in_pieces(width: int) -> Ops:
    """x W^T as a chain of sums over `width` inputs at a time: another order of summation, and a longer one."""

    def pieces(x: Array, weight: Array, bias: Array | None, p: Precision) -> Array:
        exact = dataclasses.replace(p, linear=p.compute)
        parts = range(0, x.shape[1], width)
        y = linear(x[:, :width], weight[:, :width], None, exact)
        for start in parts[1:]:
            y = y + linear(x[:, start : start + width], weight[:, start : start + width], None, exact)
        if bias is not None:
            y = y + bias.astype(y.dtype)
        return rounded(y, p.linear)

    return replace(NUMPY, linear=pieces)


def stochastic(dtype: str, seed: int) -> Ops:
    """What every step returns is rounded up or down by chance, in proportion (Gupta et al. 2015)."""
    rng = np.random.default_rng(seed)

    def round_by_chance(y: Array) -> Array:
        near = rounded(y, dtype)
        # One more step of the type towards the other side of y, had it not been the nearest.
        other = rounded(y + 1.5 * (y - near) + np.copysign(_ulp(near, dtype), y - near) * 0.5, dtype)
        gap = other - near
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(gap != 0, (y - near) / gap, 0)
        return np.where(rng.random(y.shape) < share, other, near).astype(y.dtype)

    def after(step: Callable) -> Callable:
        return lambda *call: round_by_chance(step(*call))

    names = ("linear", "rms_norm", "layer_norm", "rope", "attention", "mlp_activation")
    steps: dict[str, Any] = {name: after(getattr(NUMPY, name)) for name in names}
    return replace(NUMPY, **steps)


def _ulp(x: Array, dtype: str) -> Array:
    """The distance between neighbours of the type at x."""
    bits = {"float32": 23, "float16": 10, "bfloat16": 7}[dtype]
    exponent = np.frexp(np.where(x == 0, 1e-30, x))[1] - 1
    return np.ldexp(np.ones_like(x), exponent - bits)


def some_points(dtype: str, seed: int) -> Precision:
    """The model's dtype at about half of the rounding points, float32 at the others."""
    rng = np.random.default_rng(seed)
    p = Precision("model", dtype)
    free = [point.name for point in fields(p)[3:] if point.name not in ("rope_angle", "linear", "residual")]
    return dataclasses.replace(p, **{name: "float32" for name in free if rng.random() < 0.5})


@lru_cache
def ensemble(dtype: str, seed: int = 0) -> tuple[Member, ...]:
    """The honest ways to compute in a type. Another seed has other orders of summation and other rounding points."""
    rng = np.random.default_rng(seed)
    presets = [Member(name, Precision(name, dtype)) for name in ("model", "transformers")]
    prescaled = Member("tensorrt_llm", Precision("model", dtype), partial(backend, dtype))
    widths = (16, 40, 8) if seed == 0 else tuple(int(n) for n in rng.integers(5, 64, 3))
    orders = [Member(f"sums of {n}", Precision("model", dtype), partial(in_pieces, n)) for n in widths]
    if dtype in ("float32", "float64"):  # wherever it is rounded, float32 stays float32: only orders are left
        return (*presets, *orders)
    by_chance = Member("by chance", Precision("model", "float32"), partial(stochastic, dtype, seed))
    points = [Member(f"some points {seed}.{i}", some_points(dtype, 10 * seed + i)) for i in range(2)]
    return (
        *presets,
        prescaled,
        orders[0],
        *points,
        replace(by_chance, precision=replace(by_chance.precision, kv=dtype)),
    )


def wider(dtype: str) -> tuple[Member, ...]:
    """Three times as many, for a case that is too close to call."""
    return tuple(dict.fromkeys(member for seed in range(3) for member in ensemble(dtype, seed)))


def honest_runs(model: Model, requests: Sequence[Request], members: Sequence[Member]) -> list[list[Array]]:
    """The logits of every request in every honest way: [member][request][tokens, vocab]."""
    return [logits(model, requests, member.make(), member.precision) for member in members]
