"""RGB pictures <-> the numbers that the model sees."""

import numpy as np
import torch
from torch import Tensor

SIZE, FOLD, PATCH = 48, 3, 2  # 48 x 48 pixels, 3 x 3 of them are channels, 2 x 2 of what is left are a token


def to_latent(rgb: np.ndarray) -> Tensor:
    """uint8 [n, 48, 48, 3] -> float32 [n, 27, 16, 16] in -1..1; channel = (row in block, column in block, colour)."""
    x = torch.as_tensor(rgb).float() / 127.5 - 1
    return x.view(-1, 16, 3, 16, 3, 3).permute(0, 2, 4, 5, 1, 3).reshape(-1, 27, 16, 16)


def to_rgb(latent: Tensor) -> np.ndarray:
    """float [n, 27, 16, 16] -> uint8 [n, 48, 48, 3], clipped and rounded."""
    x = latent.view(-1, 3, 3, 3, 16, 16).permute(0, 4, 1, 5, 2, 3).reshape(-1, SIZE, SIZE, 3)
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def to_patches(latent: Tensor) -> Tensor:
    """[n, 27, 16, 16] -> [n, 64, 108], as diffusers' Z-Image orders them: (patch row, patch column, channel)."""
    return latent.view(-1, 27, 8, 2, 8, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, 108)


def from_patches(patches: Tensor) -> Tensor:
    """[n, 64, 108] -> [n, 27, 16, 16]"""
    return patches.view(-1, 8, 8, 2, 2, 27).permute(0, 5, 1, 3, 2, 4).reshape(-1, 27, 16, 16)
