"""Wrong ways to serve an adapter on a base in four bits."""

import numpy as np

from ...arrays import Array
from ..exercise import Mistake
from ..q4 import dequantise, quantise


def patch(x: Array, A: Array, B: Array, scale: float) -> Array:
    return scale * (x @ A.T) @ B.T


def merged_and_quantised(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    merged = dequantise(q, steps) + scale * (B @ A)
    return x @ dequantise(*quantise(merged, q.shape[1] // steps.shape[1])).T


def merged_at_the_old_steps(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    step = np.repeat(steps, q.shape[1] // steps.shape[1], axis=1)
    merged = np.rint((q * step + scale * (B @ A)) / step).clip(-7, 7)
    return x @ (merged * step).T


def patch_rounded_to_the_steps(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    step = np.repeat(steps, q.shape[1] // steps.shape[1], axis=1)
    return x @ (q * step + np.rint(scale * (B @ A) / step) * step).T


def one_step_a_row(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    return x @ (q * steps[:, :1]).T + patch(x, A, B, scale)


def largest_step_of_the_row(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    return x @ (q * steps.max(axis=1, keepdims=True)).T + patch(x, A, B, scale)


def steps_tiled(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    return x @ (q * np.tile(steps, q.shape[1] // steps.shape[1])).T + patch(x, A, B, scale)


def without_steps(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    return x @ q.T + patch(x, A, B, scale)


def without_scale(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    return x @ dequantise(q, steps).T + patch(x, A, B, 1.0)


def everything_scaled(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    return scale * (x @ dequantise(q, steps).T + patch(x, A, B, 1.0))


def middle_in_half(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    with np.errstate(over="ignore"):
        low = (x @ A.T).astype(np.float16).astype(float)
    return x @ dequantise(q, steps).T + scale * low @ B.T


MISTAKES = (
    Mistake(
        "merged_and_quantised",
        "W + scale B A is rounded to the grid of four bits, and of the patch only what is a step or so survives.",
        merged_and_quantised,
        ("https://github.com/huggingface/peft/issues/2321", "https://github.com/huggingface/transformers/issues/31293"),
    ),
    Mistake(
        "merged_at_the_old_steps",
        "the steps were chosen for W alone: what the patch adds is rounded to them, and cut off at the largest code.",
        merged_at_the_old_steps,
        ("https://github.com/huggingface/peft/issues/1043",),
    ),
    Mistake(
        "patch_rounded_to_the_steps",
        "A and B were not quantised: their product has no steps to be rounded to.",
        patch_rounded_to_the_steps,
    ),
    Mistake("one_step_a_row", "every run of a row has a step of its own, not the first one's.", one_step_a_row),
    Mistake(
        "largest_step_of_the_row", "every run of a row has a step of its own, not the largest.", largest_step_of_the_row
    ),
    Mistake(
        "steps_tiled",
        "neighbours share a step: the steps are repeated, one after the other, and not cycled.",
        steps_tiled,
    ),
    Mistake("without_steps", "a code is no weight: it says how many steps.", without_steps),
    Mistake("without_scale", "the patch has a scale, whatever the base is stored in.", without_scale),
    Mistake(
        "everything_scaled", "the scale is the patch's alone: the base is not to be multiplied.", everything_scaled
    ),
    Mistake(
        "middle_in_half",
        "x A^T was rounded to float16 on its way: it is as large as x makes it, and fits no half type.",
        middle_in_half,
        ("https://github.com/vllm-project/vllm/pull/38686",),
    ),
)
