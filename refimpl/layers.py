"""The parts of a transformer layer that know nothing of requests: one function, one formula.

Each takes a Precision and rounds where it says; in float32 and float64 no rounding takes place. Two forms of the same
step stand one under the other where they differ: the definition, token by token, and the form that runs.
"""

import math

import numpy as np

from .arrays import Array, Float, Int, Precision, namespace, rounded, widen
from .config import Rope

FEW_TOKENS = 6  # OpenBLAS, 256 x 256 to 2048 x 768, weights out of the cache: the two cost the same at 6 to 8 tokens
WIDEN_AT_ONCE = 1 << 22  # weights of a half type are widened in pieces of this many numbers, never as a whole


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
    """y = x W^T + b, one matrix product; a weight of a half type passes through a small float32 buffer."""
    tokens, (d_out, d_in) = x.shape[0], weight.shape
    if weight.dtype == x.dtype:
        y = product(x, weight)
    else:
        y, piece = namespace(x).empty((tokens, d_out), x.dtype), max(1, WIDEN_AT_ONCE // d_in)
        for start in range(0, d_out, piece):
            y[:, start : start + piece] = product(x, widen(weight[start : start + piece], p.compute))
    if bias is not None:
        y += widen(bias, p.compute)
    return rounded(y, p.linear)


def product(x: Float[Array, "tokens d_in"], W: Float[Array, "d_out d_in"]) -> Float[Array, "tokens d_out"]:
    """x W^T. For a few tokens, one matrix-vector product each: a BLAS packs a matrix before it multiplies, and for few
    tokens that costs more than it brings, when the weights come from memory as they do in a decode step."""
    if len(x) <= FEW_TOKENS and isinstance(x, np.ndarray):
        return (W @ x[:, :, None])[:, :, 0]
    return x @ W.T


def rms_norm(
    x: Float[Array, "tokens d_model"], weight: Float[Array, " d_model"], eps: float, p: Precision
) -> Float[Array, "tokens d_model"]:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis (Zhang & Sennrich 2019)."""
    xp = namespace(x)
    mean_square = xp.einsum("td,td->t", x, x)[:, None] / x.shape[1]
    return rounded(rounded(x / xp.sqrt(mean_square + eps), p.norm_inner) * widen(weight, p.compute), p.norm)


def rms_norm_per_token(
    x: Float[Array, "tokens d_model"], weight: Float[Array, " d_model"], eps: float, p: Precision
) -> Float[Array, "tokens d_model"]:
    """The definition, one token at a time."""
    xp, y = namespace(x), namespace(x).empty_like(x)
    for t in range(x.shape[0]):
        y[t] = rounded(x[t] / xp.sqrt((x[t] * x[t]).mean() + eps), p.norm_inner) * widen(weight, p.compute)
    return rounded(y, p.norm)


def rope_frequencies(rope: Rope, head_dim: int, dtype: str = "float64") -> Float[Array, " half"]:
    """Radians per position of each pair of channels; `dtype` is the type that the engine computes them in.

    default   theta^(-2i/head_dim)                                              (Su et al. 2021)
    linear    the same / factor                                                 (Chen et al. 2023)
    llama3    long waves / factor, short waves as they are, a ramp in between   (Llama 3.1;
              transformers/modeling_rope_utils.py, _compute_llama3_parameters)
    """
    frequency = 1.0 / np.asarray(rope.theta, dtype) ** (np.arange(0, head_dim, 2).astype(dtype) / head_dim)
    if rope.type == "linear":
        return frequency / rope.factor
    if rope.type == "llama3":
        turns = rope.original_max_position_embeddings * frequency / (2 * math.pi)  # over the original context
        ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = np.clip(ramp, 0, 1)  # 1: short waves, kept;  0: long waves, stretched
        return ((1 - keep) * frequency / rope.factor + keep * frequency).astype(dtype)
    return frequency


def rope_table(
    rope: Rope, head_dim: int, positions: Int[Array, " tokens"], p: Precision
) -> tuple[Float[Array, "tokens half"], Float[Array, "tokens half"]]:
    """cos and sin of position * frequency. A plan: made on the host, once a batch, for all layers."""
    frequency = rope_frequencies(rope, head_dim, p.rope_angle)
    angle = positions.astype(p.rope_angle)[:, None] * frequency[None, :]
    return rounded(np.cos(angle).astype(p.compute), p.rope_table), rounded(
        np.sin(angle).astype(p.compute), p.rope_table
    )


def apply_rope(
    x: Float[Array, "tokens heads head_dim"],
    cos: Float[Array, "tokens half"],
    sin: Float[Array, "tokens half"],
    p: Precision,
) -> Float[Array, "tokens heads head_dim"]:
    """Turn each pair (x[i], x[i + head_dim/2]) by its angle: the half-split layout of Hugging Face checkpoints."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]
    y = namespace(x).empty_like(x)
    y[..., :half] = rounded(first * cos, p.rope_product) - rounded(second * sin, p.rope_product)
    y[..., half:] = rounded(second * cos, p.rope_product) + rounded(first * sin, p.rope_product)
    return rounded(y, p.rope)


def apply_rope_per_token(
    x: Float[Array, "tokens heads head_dim"],
    cos: Float[Array, "tokens half"],
    sin: Float[Array, "tokens half"],
    p: Precision,
) -> Float[Array, "tokens heads head_dim"]:
    """The definition: one token, one head, one pair of channels at a time is a 2 x 2 rotation."""
    y, half = namespace(x).empty_like(x), x.shape[-1] // 2
    for t in range(x.shape[0]):
        for i in range(half):
            first, second = x[t, :, i], x[t, :, i + half]
            y[t, :, i] = rounded(first * cos[t, i], p.rope_product) - rounded(second * sin[t, i], p.rope_product)
            y[t, :, i + half] = rounded(second * cos[t, i], p.rope_product) + rounded(first * sin[t, i], p.rope_product)
    return rounded(y, p.rope)


def softmax(scores: Array, p: Precision) -> Array:
    """exp(s - max) / sum over the last axis. -inf is a key that is not seen."""
    weights = namespace(scores).exp(scores - scores.max(axis=-1, keepdims=True))
    return rounded(weights / weights.sum(axis=-1, keepdims=True), p.probabilities)


def mlp_activation(
    gate: Float[Array, "tokens d_mlp"], up: Float[Array, "tokens d_mlp"], p: Precision
) -> Float[Array, "tokens d_mlp"]:
    """silu(gate) * up, silu(g) = g / (1 + e^-g) (SwiGLU, Shazeer 2020)."""
    xp = namespace(gate)
    with np.errstate(over="ignore"):  # e^-g may be inf: then silu is -0, which is right
        silu = gate / (1 + xp.exp(-gate))
    return rounded(rounded(silu, p.activation_inner) * up, p.activation)
