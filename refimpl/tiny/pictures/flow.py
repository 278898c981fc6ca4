"""The loss of a rectified flow whose model predicts the clean picture. (refimpl/pictures/sampler.py follows it.)

Along the straight path x = (1 - sigma) picture + sigma noise (Liu et al. 2022, "Flow Straight and Fast") the velocity
towards the picture is picture - noise = (picture - x) / sigma, so that a prediction of the picture is one of the
velocity. Pixel art is made of flat colours, which are easier to predict than a difference with noise.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEAST_SIGMA = 0.1  # larger: less weight on the almost clean pictures
SIGMA_MEAN, SIGMA_SPREAD = 0.5, 1.2  # of the logit; a larger mean trains more on noise


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Logit-normal noise levels [count] (Esser et al. 2024, 3.1), one from each count-th of the distribution."""
    uniform = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    normal = torch.erfinv((2 * uniform - 1).clamp(-0.9999, 0.9999)) * math.sqrt(2)
    return torch.sigmoid(SIGMA_MEAN + SIGMA_SPREAD * normal)


def patch_weights(weight: float, patches: Sequence[int]) -> Tensor:
    """[64, 1]: how much an error in each patch counts. `weight` in some patches, 1 elsewhere."""
    weights = torch.ones(64, 1)
    weights[list(patches)] = weight
    return weights


def loss(
    model: nn.Module,
    x: Tensor,
    captions: Tensor,
    lengths: Tensor,
    generator: torch.Generator,
    weights: Tensor | float = 1.0,
) -> Tensor:
    """The mean squared error of the predicted pictures x [n, 64, 108], weighted by 1 / sigma^2: that of velocities.

    `weights` [64, 1] say how much each patch counts besides."""
    sigmas = draw_sigmas(len(x), generator)
    noise = torch.randn(x.shape, generator=generator)
    levels = sigmas[:, None, None]
    predicted = model((1 - levels) * x + levels * noise, 1 - sigmas, captions, lengths)
    return (weights * (predicted - x).square() / levels.clamp(min=LEAST_SIGMA) ** 2).mean()


@torch.no_grad()
def errors(model: nn.Module, x: Tensor, captions: Tensor, lengths: Tensor) -> dict[str, float]:
    """The mean squared error of the predicted picture (range -1..1) at four noise levels, with fixed noise."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    by_level = {}
    for sigma in (0.98, 0.8, 0.5, 0.2):
        time = torch.full((len(x),), 1 - sigma)
        predicted = model((1 - sigma) * x + sigma * noise, time, captions, lengths)
        by_level[str(sigma)] = round((predicted - x).square().mean().item(), 4)
    return by_level
