"""How far off rounding alone could put an answer, to first order: beyond that nothing but a bug is.

Every step's result is moved by as much as rounding may move it, each number up or down by chance: u |y| for the type
that it is stored in, and K v |x| |W| for a sum of K products in float32. What comes of it at the logits has the rms
sqrt(sum (J_i b_i)^2); all n numbers conspiring move it by sum |J_i b_i|, which is at most sqrt(n) times as much
(Cauchy and Schwarz). That is far above what honest engines do, and therefore no limit for them: a ceiling.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...arrays import DTYPES, Array
from ...layers import linear
from ...lora import added_by, lora_delta
from ...model import logits
from ...ops import NUMPY, Ops
from ...request import Request
from ..bugs.steps import each, remapped
from ..cases.testbed import Testbed
from .measure import Errors
from .rms import rms_shown

SINGLE = 2.0**-24  # half a unit in the last place of float32


class Moved:
    """An Ops whose steps are off by their bounds, and how many numbers were."""

    def __init__(self, dtype: str, seed: int) -> None:
        import ml_dtypes

        self.rng, self.count = np.random.default_rng(seed), 0
        self.unit = float(ml_dtypes.finfo(DTYPES[dtype]).eps) / 2

    def by(self, y: Array, bound: Array) -> Array:
        """y, each number one bound up or down."""
        self.count += y.size
        return y + bound * self.rng.choice([-1.0, 1.0], y.shape)

    @property
    def ops(self) -> Ops:
        """In float64."""
        unit, absolute = self.unit, each(_absolute).lora_delta

        def product(x: Array, weight: Array, bias: Array | None, p: Any) -> Array:
            y = linear(x, weight, bias, p)
            sums = linear(np.abs(x), np.abs(weight), None if bias is None else np.abs(bias), p)
            return self.by(y, unit * np.abs(y) + x.shape[1] * SINGLE * sums)

        positive_weights = remapped(lambda ids, weights: (ids, np.abs(weights)))

        def delta(y: Array, x: Array, module: Any, adapters: Any, mapping: Any, p: Any) -> None:
            exact_delta, sums = added_by(lora_delta, y, x, module, adapters, mapping, p), np.zeros_like(y)
            positive = x if x.dtype.kind in "iu" else np.abs(x)
            absolute(sums, positive, module, adapters, positive_weights(mapping), p)
            terms = 1 if x.dtype.kind in "iu" else x.shape[1]
            sums = np.maximum(sums, np.abs(exact_delta))  # DoRA adds a part of y as well
            y += self.by(exact_delta, (3 * unit + terms * SINGLE) * sums)

        def attention(q: Array, k: Array, v: Array, *rest: Any) -> Array:
            q = self.by(q, (2 * unit + q.shape[-1] * SINGLE) * np.abs(q))
            y = NUMPY.attention(q, k, v, *rest)
            return self.by(y, (2 * unit + k.shape[0] * SINGLE) * NUMPY.attention(q, k, np.abs(v), *rest))

        def rms_norm(x: Array, *rest: Any) -> Array:
            y = NUMPY.rms_norm(self.by(x, unit * np.abs(x)), *rest)  # the residual stream was rounded as well
            return self.by(y, (2 * unit + x.shape[1] * SINGLE) * np.abs(y))

        def layer_norm(x: Array, weight: Array, *rest: Any) -> Array:
            x = self.by(x, unit * np.abs(x))
            y, sums = NUMPY.layer_norm(x, weight, *rest), np.abs(NUMPY.layer_norm(x, weight[:1], *rest))
            return self.by(y, (2 * unit + x.shape[1] * SINGLE) * (sums + np.abs(weight[1:]).sum(axis=0)))

        def after(step: Callable, times: int) -> Callable:
            def moved(*call: Any) -> Array:
                y = step(*call)
                return self.by(y, times * (unit + SINGLE) * np.abs(y).max(axis=-1, keepdims=True))

            return moved

        return replace(
            NUMPY,
            linear=product,
            lora_delta=delta,
            attention=attention,
            rms_norm=rms_norm,
            layer_norm=layer_norm,
            rope=after(NUMPY.rope, 3),
            mlp_activation=after(NUMPY.mlp_activation, 3),
        )


def _absolute(lora: Any) -> Any:
    bias = None if lora.bias is None else np.abs(lora.bias)
    B = np.abs(lora.B) if lora.dora is None else np.abs(lora.dora.gain[:, None] * lora.B)
    return dataclasses.replace(lora, A=np.abs(lora.A), B=B, scale=abs(lora.scale), bias=bias, dora=None)


def ceilings(requests: Sequence[Request], raws: Sequence[Errors], testbed: Testbed, seed: int = 0) -> list[Array]:
    """Of each request's shown rows, in units of noise."""
    moved = Moved(testbed.dtype, seed)
    rows = logits(testbed.exact, requests, moved.ops)
    lengths = [len(r.prompt_ids) for r in requests]
    ceilings_of = []
    for run, raw, n in zip(rows, raws, lengths, strict=True):
        error = raw.view.error(run[raw.rows], raw.logits)
        response = rms_shown(error, raw.view.shown)
        ceilings_of.append(np.sqrt(moved.count / sum(lengths) * n) * response / raw.unit)
    return ceilings_of
