"""Pixels <-> latents <-> patches: three ways to lay out the same numbers.

    pixels   [height, width, 3] uint8, what a screen shows
    latent   [channels, height / block, width / block], -1 to 1: each block of block * block pixels is channels
    patches  [patches, d_patch]: each block of patch * patch latent pixels is a token

A model with a VAE has another latent, which only that VAE turns into pixels.
"""

import math

import numpy as np

from ..arrays import Array, Float, Int
from ..errors import RequestError
from .config import PictureConfig

COLOURS = 3


def block_side(config: PictureConfig) -> int | None:
    """How many pixels a side the blocks have whose colours are the model's channels; None if they are of a VAE."""
    block = math.isqrt(config.in_channels // COLOURS)
    return block if block and COLOURS * block**2 == config.in_channels else None


def to_patches(latent: Float[Array, "channels height width"], patch: int) -> Float[Array, "patches d_patch"]:
    """Row by row of patches; in each, (row, column, channel). As _patchify_image of transformer_z_image.py."""
    channels, height, width = latent.shape
    x = latent.reshape(channels, height // patch, patch, width // patch, patch)
    return x.transpose(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)


def from_patches(
    patches: Float[Array, "patches d_patch"], patch: int, grid: tuple[int, int]
) -> Float[Array, "channels height width"]:
    """The way back, for a picture of grid = (rows, columns) of patches."""
    rows, columns = grid
    x = patches.reshape(rows, columns, patch, patch, -1)
    return x.transpose(4, 0, 2, 1, 3).reshape(-1, rows * patch, columns * patch)


def to_latent(pixels: Int[Array, "height width 3"], block: int) -> Float[Array, "channels rows columns"]:
    """uint8 -> float32 in -1..1; channel = (row in the block, column in the block, colour)."""
    height, width, _ = pixels.shape
    x = (pixels.astype(np.float32) / 127.5 - 1).reshape(height // block, block, width // block, block, COLOURS)
    return x.transpose(1, 3, 4, 0, 2).reshape(-1, height // block, width // block)


def to_pixels(latent: Float[Array, "channels rows columns"]) -> Int[Array, "height width 3"]:
    """The way back, clipped and rounded to uint8. RequestError for channels that are no blocks of colours."""
    channels, rows, columns = latent.shape
    block = math.isqrt(channels // COLOURS)
    if not block or COLOURS * block**2 != channels:
        raise RequestError(f"{channels} channels are of a VAE, not blocks of colours: draw_latents, and decode them")
    x = latent.reshape(block, block, COLOURS, rows, columns).transpose(3, 0, 4, 1, 2)
    x = x.reshape(rows * block, columns * block, COLOURS)
    return np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)
