"""From noise to a picture: a rectified flow, followed in a few straight steps.

On the straight way x = (1 - sigma) * picture + sigma * noise (Liu et al. 2022) the picture lies ahead with velocity
picture - noise, whatever sigma is. The model is asked for that velocity, or for the picture, from which it follows.
"""

import numpy as np

from ..arrays import Array, Float, namespace
from .weights import Flow

LEAST_SIGMA = 0.05  # (picture - x) is divided by no less; larger: the last steps go a shorter way


def sigmas(steps: int, shift: float = 1.0) -> Float[Array, " edges"]:
    """steps + 1 noise levels from 1 to 0, in float32, as FlowMatchEulerDiscreteScheduler has them in ZImagePipeline.

    shift * s / (1 + (shift - 1) * s) of equal steps s (Esser et al. 2024): at 1 they stay equal."""
    levels = np.linspace(1, 0, steps + 1)
    return (shift * levels / (1 + (shift - 1) * levels)).astype(np.float32)


def noise(seed: int, shape: tuple[int, ...]) -> Float[Array, "channels height width"]:
    """Normal numbers in float32: a function of the seed and the shape, and of nothing else that is drawn.

    NumPy's PCG64, whose numbers are the same on every machine."""
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)


def velocity(
    said: Float[Array, "patches d_patch"],
    x: Float[Array, "patches d_patch"],
    sigma: Float[Array, "patches 1"],
    flow: Flow,
) -> Float[Array, "patches d_patch"]:
    """The velocity that the model's output stands for; (picture - x) / sigma if it is the clean picture.

    picture - noise = picture - (x - (1 - sigma) * picture) / sigma = (picture - x) / sigma."""
    if flow.prediction == "velocity":
        return said
    return (said - x) / namespace(x).maximum(sigma, x.dtype.type(LEAST_SIGMA))


def euler_step(
    x: Float[Array, "patches d_patch"],
    said: Float[Array, "patches d_patch"],
    sigma: Float[Array, "patches 1"],
    following: Float[Array, "patches 1"],
    flow: Flow,
) -> Float[Array, "patches d_patch"]:
    """The patches at their following noise level: straight on along the velocity at this one."""
    return x + (sigma - following) * velocity(said, x, sigma, flow)
