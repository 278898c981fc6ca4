"""The parts of a transformer layer that know nothing of requests: one function, one formula.

Each takes a Precision, p, and rounds where it says: `rounded(y, p.linear)` is y itself in float32 and float64. Two
forms of the same step stand one under the other where they differ: the definition, token by token, and the form that
runs.
"""

import math

import numpy as np

from .arrays import Array, Float, Int, Precision, namespace, rounded, widen
from .config import ClampedGate
from .matmul import matmul
from .memory_pool import empty


def embed(
    table: Float[Array, "vocab d_model"], token_ids: Int[Array, " tokens"], p: Precision
) -> Float[Array, "tokens d_model"]:
    """x[t] = table[token_ids[t]]. The ids were validated with the request: CuPy would wrap a wrong one silently."""
    return rounded(widen(table[token_ids], p.compute), p.embedding)


def linear_per_token(
    x: Float[Array, "tokens d_in"], weight: Float[Array, "d_out d_in"], bias: Array | None, p: Precision
) -> Float[Array, "tokens d_out"]:
    """y[t] = W x[t] + b: the definition."""
    xp, W = namespace(x), widen(weight, p.compute)
    y = xp.empty((x.shape[0], W.shape[0]), x.dtype)
    for t in range(x.shape[0]):
        y[t] = W @ x[t]
    return rounded(y if bias is None else y + widen(bias, p.compute), p.linear)


def linear(
    x: Float[Array, "tokens d_in"], weight: Float[Array, "d_out d_in"], bias: Array | None, p: Precision
) -> Float[Array, "tokens d_out"]:
    """y = x W^T + b, all tokens in one product."""
    y = matmul(x, weight, p)
    if bias is not None:
        y += widen(bias, p.compute)
    return rounded(y, p.linear)


def rms_norm(
    x: Float[Array, "tokens d_model"], weight: Float[Array, " d_model"], eps: float, p: Precision
) -> Float[Array, "tokens d_model"]:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis (Zhang & Sennrich 2019)."""
    xp = namespace(x)
    mean_square = xp.einsum("td,td->t", x, x)[:, None] / x.shape[1]
    y = rounded(x / xp.sqrt(mean_square + eps), p.norm_inner)
    y *= widen(weight, p.compute)
    return rounded(y, p.norm)


def rms_norm_per_token(
    x: Float[Array, "tokens d_model"], weight: Float[Array, " d_model"], eps: float, p: Precision
) -> Float[Array, "tokens d_model"]:
    """The definition, one token at a time."""
    xp, y = namespace(x), namespace(x).empty_like(x)
    for t in range(x.shape[0]):
        y[t] = rounded(x[t] / xp.sqrt((x[t] * x[t]).mean() + eps), p.norm_inner) * widen(weight, p.compute)
    return rounded(y, p.norm)


def layer_norm(
    x: Float[Array, "tokens d_model"], weight: Float[Array, "parts d_model"], eps: float, p: Precision
) -> Float[Array, "tokens d_model"]:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias, over the last axis (Ba et al. 2016).

    weight: the weight and, where there is one, the bias below it."""
    xp = namespace(x)
    centred = x - x.mean(axis=1, keepdims=True)
    variance = xp.einsum("td,td->t", centred, centred)[:, None] / x.shape[1]
    y = rounded(centred / xp.sqrt(variance + eps), p.norm_inner)
    y *= widen(weight[0], p.compute)
    if len(weight) > 1:
        y += widen(weight[1], p.compute)
    return rounded(y, p.norm)


def layer_norm_per_token(
    x: Float[Array, "tokens d_model"], weight: Float[Array, "parts d_model"], eps: float, p: Precision
) -> Float[Array, "tokens d_model"]:
    """The definition, one token at a time."""
    xp, y, gain, *bias = namespace(x), namespace(x).empty_like(x), *widen(weight, p.compute)
    for t in range(x.shape[0]):
        centred = x[t] - x[t].mean()
        y[t] = rounded(centred / xp.sqrt((centred * centred).mean() + eps), p.norm_inner) * gain + sum(bias)
    return rounded(y, p.norm)


def softmax(scores: Array, p: Precision) -> Array:
    """exp(s - max) / sum over the last axis. -inf is a key that is not seen."""
    weights = scores - scores.max(axis=-1, keepdims=True)
    namespace(scores).exp(weights, out=weights)
    weights /= weights.sum(axis=-1, keepdims=True)
    return rounded(weights, p.probabilities)


def softmax_with_sinks(scores: Float[Array, "*rows keys"], sinks: Float[Array, "*rows 1"], p: Precision) -> Array:
    """exp(s) / (exp(sink) + sum exp(s)): softmax over the keys and one more score that has no column in the result.

    A row of nothing but -inf is 0: all of it is the sink's."""
    xp = namespace(scores)
    most = xp.maximum(scores.max(axis=-1, keepdims=True), sinks)
    weights = rounded(scores - most, p.scores)
    xp.exp(weights, out=weights)
    weights /= weights.sum(axis=-1, keepdims=True) + xp.exp(rounded(sinks - most, p.scores))
    return rounded(weights, p.probabilities)


def mlp_activation(
    gate: Float[Array, "tokens d_mlp"], up: Float[Array, "tokens d_mlp"] | None, kind: str | ClampedGate, p: Precision
) -> Float[Array, "tokens d_mlp"]:
    """act(gate) * up (Shazeer 2020), or act(gate) alone. kind names act: silu is g / (1 + e^-g), gelu_tanh is
    g/2 (1 + tanh(...)), the approximation of Hendrycks & Gimpel 2016, and relu2 is max(g, 0)^2 (So et al. 2021);
    gpt-oss has a form of its own (clamped_gate)."""
    if isinstance(kind, ClampedGate):
        assert up is not None
        return clamped_gate(gate, up, kind, p)
    xp = namespace(gate)
    if kind == "silu":
        active = xp.negative(gate, out=empty(gate.shape, gate))
        with np.errstate(over="ignore"):  # e^-g may be inf: then silu is -0, which is right
            xp.exp(active, out=active)
        active += 1
        xp.divide(gate, active, out=active)
    elif kind == "relu2":
        active = xp.square(xp.maximum(gate, 0))
    else:
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        active = 0.5 * gate * (1 + xp.tanh(inner))
    active = rounded(active, p.activation_inner)
    if up is not None:
        active *= up
    return rounded(active, p.activation)


def clamped_gate(
    gate: Float[Array, "tokens d_mlp"], up: Float[Array, "tokens d_mlp"], kind: ClampedGate, p: Precision
) -> Float[Array, "tokens d_mlp"]:
    """(up + 1) gate / (1 + e^(-alpha gate)), both clamped first, rounded after each operation, as modeling_gpt_oss.py
    has it."""
    xp, inner = namespace(gate), p.activation_inner
    gate, up = xp.minimum(gate, kind.limit), xp.clip(up, -kind.limit, kind.limit)
    with np.errstate(over="ignore"):  # e^-g may be inf: then the gate is -0, which is right
        sigmoid = rounded(1 / (1 + xp.exp(-rounded(kind.alpha * gate, inner))), inner)
    return rounded(rounded(up + 1, inner) * rounded(gate * sigmoid, inner), p.activation)


def scaled(x: Float[Array, "tokens *rest"], factor: Array | float, p: Precision) -> Float[Array, "tokens *rest"]:
    """x * factor: the multipliers of Granite and Gemma, and a factor for each token. x itself if the factor is 1."""
    if isinstance(factor, float):
        return x if factor == 1 else rounded(x * x.dtype.type(factor), p.scaled)
    return rounded(x * factor, p.scaled)


def softcap(x: Array, cap: float | None, dtype: str) -> Array:
    """cap * tanh(x / cap), each of the three rounded to the type (Gemma 2). x itself where there is no cap."""
    if cap is None:
        return x
    return rounded(cap * rounded(namespace(x).tanh(rounded(x / cap, dtype)), dtype), dtype)
