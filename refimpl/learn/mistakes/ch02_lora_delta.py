"""Wrong ways to add each token's patch: each was seen in an engine, or is easy to write."""

from collections.abc import Callable, Sequence

import numpy as np

from ...arrays import Array
from ..exercise import Mistake

Matrices = Sequence[Array]
Routing = Callable[[Array, int], Array]  # adapter_ids, how many adapters -> other adapter_ids


def by_adapter(y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array) -> None:
    """The right function, in which the others get something wrong."""
    for i in range(len(A)):
        rows = np.flatnonzero(adapter_ids == i)
        y[rows] += scale[i] * (x[rows] @ A[i].T @ B[i].T)


def routed(ids_of: Routing) -> Callable[..., None]:
    """The right function, with the ids changed before it."""

    def lora_delta(y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array) -> None:
        by_adapter(y, x, A, B, scale, ids_of(adapter_ids, len(A)))

    return lora_delta


def zero_is_none(y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array) -> None:
    for t, i in enumerate(adapter_ids):
        if i:
            y[t] += scale[i] * (B[i] @ (A[i] @ x[t]))


def never_put_back(y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array) -> None:
    order = np.argsort(adapter_ids, kind="stable")
    by_adapter(y, x[order], A, B, scale, adapter_ids[order])


def scale_of_the_first(
    y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array
) -> None:
    by_adapter(y, x, A, B, [scale[0]] * len(A), adapter_ids)


def scale_is_one(y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array) -> None:
    by_adapter(y, x, A, B, [1.0] * len(A), adapter_ids)


def last_adapter_left_out(
    y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array
) -> None:
    by_adapter(y, x, A[:-1], B, scale, adapter_ids)


def stacked(y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array) -> None:
    by_adapter(y, x, list(np.stack(A)), list(np.stack(B)), scale, adapter_ids)


def rank_cut(y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array) -> None:
    r = min(len(matrix) for matrix in A)
    by_adapter(y, x, [matrix[:r] for matrix in A], [matrix[:, :r] for matrix in B], scale, adapter_ids)


def y_of_its_own(y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array) -> None:
    by_adapter(y.copy(), x, A, B, scale, adapter_ids)


def patch_alone(y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array) -> None:
    for i in range(len(A)):
        rows = np.flatnonzero(adapter_ids == i)
        y[rows] = scale[i] * (x[rows] @ A[i].T @ B[i].T)


def times_zero(y: Array, x: Array, A: Matrices, B: Matrices, scale: Sequence[float], adapter_ids: Array) -> None:
    for i in range(len(A)):
        y += (adapter_ids == i)[:, None] * (scale[i] * (x @ A[i].T @ B[i].T))


MISTAKES = (
    Mistake(
        "minus_one_is_the_last",
        "-1 counts from the end in Python: a request without an adapter gets the last one.",
        routed(lambda adapter_ids, adapters: adapter_ids % adapters),
        (
            "https://github.com/NVIDIA/TensorRT-LLM/issues/2096",
            "https://github.com/vllm-project/vllm/issues/49063",
        ),
    ),
    Mistake(
        "none_is_the_first",
        "a request without an adapter gets adapter 0.",
        routed(lambda adapter_ids, adapters: np.maximum(adapter_ids, 0)),
        ("https://github.com/NVIDIA/TensorRT-LLM/issues/2096",),
    ),
    Mistake(
        "zero_is_none",
        "0 is an adapter and -1 is none; for Python's `if` it is the other way round.",
        zero_is_none,
    ),
    Mistake(
        "never_put_back",
        "rows that were sorted for the product have to go back to where they came from.",
        never_put_back,
    ),
    Mistake(
        "everyone_gets_the_first",
        "one adapter was chosen for the whole batch, and it is that of the first token.",
        routed(lambda adapter_ids, adapters: np.full_like(adapter_ids, adapter_ids[0])),
    ),
    Mistake("scale_of_the_first", "each adapter has a scale of its own.", scale_of_the_first),
    Mistake(
        "scale_is_one",
        "the scale is missing.",
        scale_is_one,
        ("https://github.com/hao-ai-lab/FastVideo/pull/870", "https://github.com/NVIDIA/TensorRT-LLM/issues/2022"),
    ),
    Mistake(
        "last_adapter_left_out",
        "n adapters have the ids 0 to n - 1: your loop ends before the last.",
        last_adapter_left_out,
        ("https://github.com/vllm-project/vllm/pull/32005",),
    ),
    Mistake(
        "stacked",
        "adapters of different ranks do not make one array: that is why A and B are lists.",
        stacked,
    ),
    Mistake(
        "rank_cut",
        "an adapter of a higher rank than its neighbour's is cut to it.",
        rank_cut,
        ("https://github.com/predibase/lorax/pull/70", "https://github.com/predibase/lorax/pull/324"),
    ),
    Mistake("y_of_its_own", "what you add to is a copy: the caller's y stays as it was.", y_of_its_own),
    Mistake("patch_alone", "the patch is added to what the base computed, and does not replace it.", patch_alone),
    Mistake(
        "times_zero",
        "0 times NaN is NaN: a row without an adapter is not to be touched, and one of the others neither.",
        times_zero,
        ("https://github.com/openvinotoolkit/openvino/pull/37377",),
    ),
)
