"""Numbers that are the same in every type: what a vector gives is exact in float32, float16 and bfloat16 alike."""

import numpy as np

from ...arrays import Array, rounded

SMALLEST = 2.0**-14  # below it, float16 has fewer digits than bfloat16


def on_grid(x: Array) -> Array:
    """The nearest float32 numbers that float16 and bfloat16 have as well."""
    near = rounded(np.asarray(x, np.float32), "bfloat16")
    return np.where(np.abs(near) < SMALLEST, np.copysign(np.float32(SMALLEST), near), near).astype(np.float32)


def signed(rng: np.random.Generator, *shape: int, size: float = 1.0) -> Array:
    """Of both signs and of different sizes: with positive ones, or all alike, errors hide in the sums."""
    return on_grid(rng.standard_normal(shape) * np.exp(rng.uniform(-1, 0.5, shape)) * size)
