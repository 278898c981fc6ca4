"""Requests -> pictures: all of them in one batch, each from its own noise, caption, adapters and number of steps."""

from collections.abc import Sequence

import numpy as np

from ..adapter_cache import AdapterCache
from ..arrays import Array, Float, Int, Precision, device_namespace, to_host
from ..errors import LoracleError, RequestError
from ..ops import NUMPY, Ops
from .batch import PictureBatch, make_picture_batch
from .model import forward
from .pixels import block_side, from_patches, to_patches, to_pixels
from .request import PictureRequest, check_picture_request, grid_of
from .sampler import euler_step, noise, sigmas
from .weights import PictureModel


def draw(
    model: PictureModel, requests: Sequence[PictureRequest], ops: Ops = NUMPY, precision: Precision | None = None
) -> list[Int[Array, "height width 3"]]:
    """One picture, uint8, for each request, in their order; all of them are computed as one batch.

    RequestError for a request that this model cannot draw, and for a model whose latent only its VAE turns into
    pixels: draw_latents has that. The same request gives the same picture in any batch, and on every machine, but for
    numbers that lie at the edge between two of the 256 steps of a colour (tests/pictures/test_same_pixels.py)."""
    if block_side(model.config) is None:
        channels = model.config.in_channels
        raise RequestError(f"{channels} channels are of a VAE, not blocks of colours: draw_latents, and decode them")
    return [to_pixels(latent) for latent in draw_latents(model, requests, ops, precision)]


def draw_latents(
    model: PictureModel, requests: Sequence[PictureRequest], ops: Ops = NUMPY, precision: Precision | None = None
) -> list[Float[Array, "channels height width"]]:
    """The same before the pixels: what a VAE decodes, in the type that products are taken in.

    LoracleError for a picture that is no longer finite numbers: an adapter, or its weight, is too large."""
    p = precision or Precision(ops.precision, model.dtype)
    if isinstance(requests, PictureRequest):
        raise RequestError("expected a list of requests: put the one in brackets")
    for request in requests:
        check_picture_request(request, model.config)
    config, xp = model.config, device_namespace(model.device)
    grids = [grid_of(request, config) for request in requests]
    x = [
        xp.asarray(to_patches(start_of(request, grid, model), config.patch_size).astype(p.compute))
        for request, grid in zip(requests, grids, strict=True)
    ]
    captions = [xp.asarray(request.caption).astype(p.compute) for request in requests]
    levels = [sigmas(request.steps, model.flow.shift) for request in requests]
    adapters = AdapterCache(model, p, ops)
    slots = [[(adapters.acquire(adapter), weight) for adapter, weight in r.adapters] for r in requests]

    batch: PictureBatch | None = None
    running: list[int] = []
    for step in range(max((request.steps for request in requests), default=0)):
        unfinished = [i for i, request in enumerate(requests) if step < request.steps]
        if batch is None or unfinished != running:  # the plan is the same at every step, until one of them is done
            running = unfinished
            shapes = [grids[i] for i in running], [len(captions[i]) for i in running]
            batch = make_picture_batch(*shapes, [slots[i] for i in running], adapters.slots, ops)
            caption = xp.concatenate([captions[i] for i in running])
        sigma, following = (np.array([levels[i][j] for i in running], np.float64) for j in (step, step + 1))
        patches = xp.concatenate([x[i] for i in running])
        said = forward(model, patches, 1 - sigma, caption, batch, adapters.slots, ops, p)
        on_patches = [xp.asarray(level.astype(p.compute))[batch.patches.pictures, None] for level in (sigma, following)]
        patches = euler_step(patches, said, on_patches[0], on_patches[1], model.flow)
        for i, start, stop in zip(running, batch.patches.starts, batch.patches.starts[1:], strict=False):
            x[i] = patches[start:stop]
    finished = [to_host(patches) for patches in x]
    for i, patches in enumerate(finished):
        if not np.isfinite(patches).all():
            raise LoracleError(f"picture {i} holds NaN or inf: an adapter of it, or a weight, is too large")
    return [from_patches(patches, config.patch_size, grid) for patches, grid in zip(finished, grids, strict=True)]


def start_of(
    request: PictureRequest, grid: tuple[int, int], model: PictureModel
) -> Float[Array, "channels height width"]:
    """The noise that a picture begins as."""
    patch = model.config.patch_size
    return noise(request.seed, (model.config.in_channels, grid[0] * patch, grid[1] * patch))
