"""The noise unit of a vector: how far off our own honest runs are, as refimpl/oracle/noise/ensemble.py for a batch.

unit    their rms distance from the truth
limit   FACTOR times that of the worst of them: an engine that we have not thought of may be a few times as far off as
        the worst way that we have, and not more
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...arrays import Array, Precision, rounded
from ...attention import attention, attention_per_token, visible
from ...config import View
from ...lora import lora_delta, lora_delta_per_token
from ...ops import NUMPY, Ops
from ...plans import AttentionMetadata
from ...tensorrt_llm.backend import backend
from ..noise.rms import rms
from .vector import Noise

FACTOR = 3.0


def noise(runs: Sequence[Array], truth: Array, bound: Array) -> Noise:
    """Of one output in one dtype, from honest runs of it. Where all of them are exact by luck, as over a single key,
    the bound of its numbers is the limit of their rms."""
    errors = [float(rms(run - truth)) for run in runs]
    return Noise(short(float(rms(errors))), short(FACTOR * max(errors) or float(rms(bound))))


def short(x: float) -> float:
    """Four digits, rounded up: what a manifest says is what is compared."""
    if x == 0:
        return 0.0
    step = 10.0 ** (np.floor(np.log10(x)) - 3)
    return float(f"{np.ceil(x / step) * step:.4g}")


def lora_roundings(dtype: str) -> list[tuple[Precision, Ops]]:
    """Where an engine may round inside the LoRA product, and with what its adapters are bound."""
    p = Precision("model", dtype)
    prescaled = [] if dtype == "float32" else [(p, backend(dtype, order)) for order in ("manager", "convert")]
    precisions = [p, Precision("transformers", dtype), dataclasses.replace(p, lora_rank=p.compute)]
    return [*((one, NUMPY) for one in precisions), *prescaled]


def lora_orders() -> list[Callable[..., None]]:
    """Ways to sum it up: per token, per adapter, the inputs backwards, and one by one."""

    def backwards(x: Array, A: Array) -> Array:
        return x[:, ::-1] @ A[:, ::-1].T

    def one_by_one(x: Array, A: Array) -> Array:
        return np.add.accumulate(x[:, None, :] * A[None], axis=2)[:, :, -1]

    return [
        lora_delta_per_token,
        lora_delta,
        partial(lora_delta, shrink=backwards),
        partial(lora_delta, shrink=one_by_one),
    ]


def attention_precisions(dtype: str) -> list[Precision]:
    """Where an engine may round inside attention."""
    p = Precision("model", dtype)
    points = [
        {},
        {"probabilities": p.compute},
        {"scores": p.compute},
        {"scores": p.compute, "probabilities": p.compute},
    ]
    return [dataclasses.replace(p, **change) for change in points]


def attention_orders() -> list[Callable[..., Array]]:
    """Ways to sum it up: per token, per request, the head backwards, and one key after the other."""

    def backwards(q: Array, k_cache: Array, *rest: Any) -> Array:
        return attention(q[..., ::-1], k_cache[..., ::-1], *rest)

    return [attention_per_token, attention, backwards, online]


def online(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    metadata: AttentionMetadata,
    view: View,
    p: Precision,
) -> Array:
    """One pass over the keys with a running maximum (Milakov & Gimelshein 2018), as kernels do it."""
    tokens, heads, head_dim = q.shape
    group = heads // k_cache.shape[2]
    out = np.empty((tokens, heads, head_dim), q.dtype)
    scale = q.dtype.type(1 / np.sqrt(head_dim))
    for t, where in visible(metadata, view.window):
        for h in range(heads):
            top, norm, mixed = q.dtype.type(-np.inf), q.dtype.type(0), np.zeros(head_dim, q.dtype)
            for block, offset in where:
                key, value = k_cache[block, offset, h // group], v_cache[block, offset, h // group]
                score = rounded(np.asarray(q[t, h] @ key * scale), p.scores)[()]
                now = max(top, score)
                shrunk, weight = np.exp(top - now), np.exp(score - now)
                norm, mixed, top = norm * shrunk + weight, mixed * shrunk + weight * value, now
            out[t, h] = mixed / norm
    return rounded(out, p.attention).reshape(tokens, heads * head_dim)
