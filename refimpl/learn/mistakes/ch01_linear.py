"""Wrong ways to add a patch: each was seen in an engine, or is easy to write."""

import math

from ...arrays import Array
from ..exercise import Attempt, Mistake


def with_scale(scale: Attempt) -> Attempt:
    """The right function, with another scale: of alpha, r and use_rslora."""

    def linear(x: Array, W: Array, A: Array, B: Array, alpha: float, use_rslora: bool) -> Array:
        return x @ W.T + scale(alpha, len(A), use_rslora) * (x @ A.T @ B.T)

    return linear


def right_scale(alpha: float, r: int, use_rslora: bool) -> float:
    return alpha / math.sqrt(r) if use_rslora else alpha / r


def forms_the_sum(x: Array, W: Array, A: Array, B: Array, alpha: float, use_rslora: bool) -> Array:
    return x @ (W + right_scale(alpha, len(A), use_rslora) * (B @ A)).T


def merges_into_the_base(x: Array, W: Array, A: Array, B: Array, alpha: float, use_rslora: bool) -> Array:
    W += right_scale(alpha, len(A), use_rslora) * (B @ A)
    return x @ W.T


def other_order(x: Array, W: Array, A: Array, B: Array, alpha: float, use_rslora: bool) -> Array:
    return x @ W.T + right_scale(alpha, len(A), use_rslora) * (x @ A @ B)


def weight_not_transposed(x: Array, W: Array, A: Array, B: Array, alpha: float, use_rslora: bool) -> Array:
    return x @ W + right_scale(alpha, len(A), use_rslora) * (x @ A.T @ B.T)


def tokens_are_columns(x: Array, W: Array, A: Array, B: Array, alpha: float, use_rslora: bool) -> Array:
    return W @ x + right_scale(alpha, len(A), use_rslora) * (B @ (A @ x))


def without_base(x: Array, W: Array, A: Array, B: Array, alpha: float, use_rslora: bool) -> Array:
    return right_scale(alpha, len(A), use_rslora) * (x @ A.T @ B.T)


def base_scaled_too(x: Array, W: Array, A: Array, B: Array, alpha: float, use_rslora: bool) -> Array:
    return right_scale(alpha, len(A), use_rslora) * (x @ W.T + x @ A.T @ B.T)


def rank_of_the_wrong_axis(x: Array, W: Array, A: Array, B: Array, alpha: float, use_rslora: bool) -> Array:
    return x @ W.T + right_scale(alpha, A.shape[1], use_rslora) * (x @ A.T @ B.T)


MISTAKES = (
    Mistake(
        "alpha_for_alpha_over_r",
        "alpha alone is r times too much: an adapter of rank 16 shouts.",
        with_scale(lambda alpha, r, use_rslora: alpha / math.sqrt(r) if use_rslora else alpha),
        (
            "https://github.com/rasbt/LLMs-from-scratch/issues/821",
            "https://github.com/Blaizzy/mlx-vlm/issues/845",
            "https://github.com/openvinotoolkit/openvino.genai/pull/2525",
        ),
    ),
    Mistake(
        "alpha_always",
        "alpha alone is too much, with and without rsLoRA: the rank has to go in.",
        with_scale(lambda alpha, r, use_rslora: alpha),
        ("https://github.com/rasbt/LLMs-from-scratch/issues/821", "https://github.com/Blaizzy/mlx-vlm/issues/845"),
    ),
    Mistake(
        "rslora_ignored",
        "the adapter was trained with another scale than the one that you give it: its config has a flag.",
        with_scale(lambda alpha, r, use_rslora: alpha / r),
        (
            "https://github.com/NVIDIA/TensorRT-LLM/issues/1668",
            "https://github.com/vllm-project/vllm/issues/10798",
            "https://github.com/sgl-project/sglang/issues/40835",
            "https://github.com/predibase/lorax/issues/700",
        ),
    ),
    Mistake(
        "rslora_for_everyone",
        "without the flag there is no root.",
        with_scale(lambda alpha, r, use_rslora: alpha / math.sqrt(r)),
    ),
    Mistake(
        "scale_is_one",
        "alpha is an argument, and it changes nothing in your function.",
        with_scale(lambda alpha, r, use_rslora: 1.0),
        ("https://github.com/hao-ai-lab/FastVideo/pull/870", "https://github.com/NVIDIA/TensorRT-LLM/issues/2022"),
    ),
    Mistake(
        "r_over_alpha",
        "a larger alpha makes a stronger patch.",
        with_scale(lambda alpha, r, use_rslora: (math.sqrt(r) if use_rslora else r) / alpha),
    ),
    Mistake(
        "scale_twice",
        "the scale is one factor of the whole patch; on A and on B it is squared.",
        with_scale(lambda alpha, r, use_rslora: right_scale(alpha, r, use_rslora) ** 2),
    ),
    Mistake(
        "rank_of_the_wrong_axis",
        "r is the side that A and B have in common.",
        rank_of_the_wrong_axis,
    ),
    Mistake(
        "other_order",
        "A is [r, d_in] and B is [d_out, r]: Punica's README writes them the other way round.",
        other_order,
        ("https://github.com/predibase/lorax/pull/682",),
    ),
    Mistake(
        "weight_not_transposed",
        "W is [d_out, d_in], and where it is square no error says that it stands the wrong way.",
        weight_not_transposed,
        ("https://github.com/microsoft/LoRA/issues/103",),
    ),
    Mistake(
        "tokens_are_columns",
        "on paper x is a column; in a batch each token is a row.",
        tokens_are_columns,
    ),
    Mistake("without_base", "the patch is added to what the base says, and does not replace it.", without_base),
    Mistake("base_scaled_too", "the base is nobody's to scale: alpha belongs to the adapter.", base_scaled_too),
    Mistake(
        "merges_into_the_base",
        "W belongs to everybody: the next request is served by the base and your adapter.",
        merges_into_the_base,
    ),
    Mistake(
        "forms_the_sum",
        "the patch was multiplied out to the size of the weight before a token saw it.",
        forms_the_sum,
    ),
)
