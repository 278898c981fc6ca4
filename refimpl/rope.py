"""Rotary position embedding: how fast each pair of channels turns, cos and sin of a batch, and the turning itself.

A head's channels are taken in pairs, and pair i of a token at position t is turned by t * frequency[i]. The tables are
a plan, made on the host once a batch for all layers; the turning has two forms, the definition and the one that runs.
"""

import math
from dataclasses import dataclass

import numpy as np

from .arrays import Array, Float, Int, Precision, namespace, rounded
from .memory_pool import empty


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding, in the names of rope_parameters; rope.py has the formulas.

    `type` is default, linear (Chen et al. 2023), llama3 (Llama 3.1), yarn (Peng et al. 2023), longrope (Ding et al.
    2024) or proportional (Gemma 4)."""

    theta: float = 10000.0
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192  # llama3, yarn, longrope
    partial_rotary_factor: float = 1.0  # the share of each head's channels that turns: its first; or of its pairs
    interleaved: bool = False  # pairs are (2i, 2i + 1), not (i, i + half)
    attention_factor: float = 1.0  # yarn, longrope: cos and sin are multiplied by it
    beta_fast: float = 32.0  # yarn: turns over the original context from which on a pair keeps its frequency,
    beta_slow: float = 1.0  # and up to which it is stretched by the whole factor
    truncate: bool = True  # yarn: the two bounds are rounded to whole pairs
    query_growth: float = 0.0  # queries are multiplied by 1 + this * ln(1 + floor(position / original)) (Ministral 3)
    short_factor: tuple[float, ...] = ()  # longrope: each pair's frequency is divided by it in a request that stays
    long_factor: tuple[float, ...] = ()  # within the original context, and by this in one that does not
    head_dim: int | None = None  # the width of the heads that it turns, where it is not the model's head_dim

    def is_long(self, limit: int) -> bool:
        """Whether a request of which up to `limit` tokens will be computed turns by the long factors."""
        return self.type == "longrope" and limit > self.original_max_position_embeddings


DEFAULT_ROPE = Rope()


def rope_frequencies(rope: Rope, head_dim: int, dtype: str = "float64", is_long: bool = False) -> Float[Array, " half"]:
    """Radians per position of each pair of channels; `dtype` is the type that the engine computes them in.

    n is the number of channels that turn: head_dim, or the share of it that partial_rotary_factor says.

    default       theta^(-2i/n)                                                     (Su et al. 2021)
    linear        default / factor
    llama3        long waves / factor, short ones kept, a ramp between the two      (Llama 3.1)
    yarn          the same with a ramp over i, between two numbers of turns         (Peng et al. 2023)
    longrope      default / short_factor[i], in a long request / long_factor[i]     (Ding et al. 2024)
    proportional  linear with n = head_dim, and 0 beyond that share of the pairs    (Gemma 4)

    As in transformers, modeling_rope_utils.py."""
    n = rotated_channels(rope, head_dim)
    frequency = 1.0 / np.asarray(rope.theta, dtype) ** (np.arange(0, n, 2).astype(dtype) / n)
    if rope.type in ("linear", "proportional"):
        frequency = frequency / rope.factor
    if rope.type == "proportional":
        frequency[int(rope.partial_rotary_factor * n // 2) :] = 0
    if rope.type == "llama3":
        turns = rope.original_max_position_embeddings * frequency / (2 * math.pi)  # over the original context
        ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = np.clip(ramp, 0, 1)  # 1: short waves, kept;  0: long waves, stretched
        return ((1 - keep) * frequency / rope.factor + keep * frequency).astype(dtype)
    if rope.type == "yarn":
        first, last = yarn_bounds(rope, n)
        stretch = np.clip((np.arange(n // 2) - first) / (last - first), 0, 1).astype(dtype)
        return ((1 - stretch) * frequency + stretch * frequency / rope.factor).astype(dtype)
    if rope.type == "longrope":
        return frequency / np.asarray(rope.long_factor if is_long else rope.short_factor, dtype)
    return frequency


def rotated_channels(rope: Rope, head_dim: int) -> int:
    """How many channels of a head turn: its first ones. All of them, if proportional: some turn by 0."""
    share = 1 if rope.type == "proportional" else rope.partial_rotary_factor
    return int((rope.head_dim or head_dim) * share)


def yarn_bounds(rope: Rope, n: int) -> tuple[float, float]:
    """The pair up to which YaRN keeps the frequency, and the one from which it stretches by the whole factor: those
    that turn beta_fast and beta_slow times over the original context."""

    def pair(turns: float) -> float:
        return n * math.log(rope.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, n - 1)
    return first, last + 0.001 if last == first else last  # transformers' way round a division by 0


def rope_table(
    rope: Rope, head_dim: int, positions: Int[Array, " tokens"], lengths: Int[Array, " tokens"], p: Precision
) -> tuple[Float[Array, "tokens half"], Float[Array, "tokens half"]]:
    """cos and sin of position * frequency, times the attention_factor. A plan: made on the host, once a batch.

    lengths: the tokens that each token's own request will have at most. A long request (Rope.is_long) turns by other
    frequencies from its first token on, whoever is beside it in the batch."""
    angle = positions.astype(p.rope_angle)[:, None] * rope_frequencies(rope, head_dim, p.rope_angle)[None, :]
    if rope.type == "longrope":
        is_long = lengths > rope.original_max_position_embeddings
        frequency = rope_frequencies(rope, head_dim, p.rope_angle, is_long=True)
        angle[is_long] = positions[is_long].astype(p.rope_angle)[:, None] * frequency[None, :]
    cos, sin = (
        rounded((turn(angle) * angle.dtype.type(rope.attention_factor)).astype(p.compute), p.rope_table)
        for turn in (np.cos, np.sin)
    )
    return cos, sin


def query_growth(rope: Rope, positions: Int[Array, " tokens"], p: Precision) -> Float[Array, "tokens 1 1"] | float:
    """What queries are multiplied by: 1 + query_growth * ln(1 + floor(position / original_max_position_embeddings)),
    as get_llama_4_attn_scale of modeling_ministral3.py has it. The number 1 where the model has no such thing."""
    if not rope.query_growth:
        return 1.0
    growth = 1 + rope.query_growth * np.log1p(positions // rope.original_max_position_embeddings)
    return rounded(growth.astype(p.compute), p.scaled)[:, None, None]


def apply_rope(
    x: Float[Array, "tokens heads head_dim"],
    cos: Float[Array, "tokens half"],
    sin: Float[Array, "tokens half"],
    interleaved: bool,
    p: Precision,
) -> Float[Array, "tokens heads head_dim"]:
    """Turn each pair of channels by its angle. Channels beyond the pairs that have one pass as they are.

    Pairs are (x[i], x[i + half]), the half-split layout of Hugging Face checkpoints, or (x[2i], x[2i + 1]) where they
    are interleaved."""
    firsts, seconds = pair_slices(cos.shape[-1], interleaved)
    first, second = x[..., firsts], x[..., seconds]
    cos, sin = cos[:, None, :], sin[:, None, :]
    xp, y = namespace(x), empty(x.shape, x)
    xp.subtract(rounded(first * cos, p.rope_product), rounded(second * sin, p.rope_product), out=y[..., firsts])
    xp.add(rounded(second * cos, p.rope_product), rounded(first * sin, p.rope_product), out=y[..., seconds])
    if 2 * cos.shape[-1] < x.shape[-1]:
        y[..., 2 * cos.shape[-1] :] = x[..., 2 * cos.shape[-1] :]
    return rounded(y, p.rope)


def pair_slices(half: int, interleaved: bool) -> tuple[slice, slice]:
    """The channels of a head that come first in their pair, and those that come second."""
    return (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))


def apply_rope_per_token(
    x: Float[Array, "tokens heads head_dim"],
    cos: Float[Array, "tokens half"],
    sin: Float[Array, "tokens half"],
    interleaved: bool,
    p: Precision,
) -> Float[Array, "tokens heads head_dim"]:
    """The definition: one token, one head, one pair of channels at a time is a 2 x 2 rotation."""
    y, half = x.copy(), cos.shape[-1]
    for t in range(x.shape[0]):
        for i in range(half):
            one, other = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            first, second = x[t, :, one], x[t, :, other]
            y[t, :, one] = rounded(first * cos[t, i], p.rope_product) - rounded(second * sin[t, i], p.rope_product)
            y[t, :, other] = rounded(second * cos[t, i], p.rope_product) + rounded(first * sin[t, i], p.rope_product)
    return rounded(y, p.rope)
