"""What a caller asks for: one picture of one caption, by one choice of adapters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..adapter import Adapter
from ..arrays import Array, Float
from ..config import module_name
from ..errors import RequestError
from ..request import check_adapters, check_whole
from .config import PAD_TO, PictureConfig
from .pixels import block_side


@dataclass(frozen=True, eq=False)
class PictureRequest:
    """One picture. The adapter is the object itself, or pairs of (Adapter, weight), as in a Request for text."""

    caption: Float[Array, "words d_text"]  # hidden states of a prompt in the text model (captions.py)
    adapter: "Adapter | Sequence[tuple[Adapter, float]] | None" = None
    seed: int = 0  # of its noise: what else is in the batch changes nothing
    steps: int = 12  # Euler steps; pictures of one batch may take different numbers of them
    height: int = 48  # in pixels; of a model with a VAE, in pixels of its latent
    width: int = 48

    @property
    def adapters(self) -> tuple[tuple[Adapter, float], ...]:
        """The adapters that this picture sums, with their weights; empty for the base model."""
        if self.adapter is None:
            return ()
        return ((self.adapter, 1.0),) if isinstance(self.adapter, Adapter) else tuple(self.adapter)


def grid_of(request: PictureRequest, config: PictureConfig) -> tuple[int, int]:
    """How many rows and columns of patches the picture has."""
    side = (block_side(config) or 1) * config.patch_size
    return request.height // side, request.width // side


def check_picture_request(request: PictureRequest, config: PictureConfig) -> None:
    """RequestError, in one line, for what this model cannot draw."""
    if not isinstance(request, PictureRequest):
        raise RequestError(f"expected a PictureRequest, not {type(request).__name__}")
    check_adapters(request.adapter)
    for adapter, _ in request.adapters:
        _check_fits(adapter, config)
    _check_caption(request.caption, config)
    check_whole("seed", request.seed, 0)
    check_whole("steps", request.steps, 1)
    _check_size(request, config)


def _check_caption(caption: Array, config: PictureConfig) -> None:
    shape = np.shape(caption)
    if len(shape) != 2 or shape[1] != config.cap_feat_dim or not shape[0]:
        raise RequestError(f"caption has shape {list(shape)}, it must be [words, {config.cap_feat_dim}], of 1 or more")
    caption = np.asarray(caption)
    if caption.dtype.kind != "f" or not np.isfinite(caption).all():
        raise RequestError(f"caption holds {caption.dtype} or NaN or inf: it must be finite floating point numbers")
    most = (config.axes_lens[0] - 2) // PAD_TO * PAD_TO
    if shape[0] > most:
        raise RequestError(f"a caption of {shape[0]} tokens is longer than the {most} that axes_lens leaves it")


def _check_size(request: PictureRequest, config: PictureConfig) -> None:
    side = (block_side(config) or 1) * config.patch_size
    for name, length, most in zip(
        ("height", "width"), (request.height, request.width), config.axes_lens[1:], strict=True
    ):
        check_whole(name, length, 1)
        if length % side or length > side * most:
            raise RequestError(f"{name} {length} must be a multiple of {side} up to {side * most}")


def _check_fits(adapter: Adapter, config: PictureConfig) -> None:
    """An adapter was checked against a base when it was loaded; this may be another one."""
    for module, lora in adapter.lora.items():
        if module not in config.linears:
            raise RequestError(f"adapter {adapter.name} is for another model: this one has no {module_name(module)}")
        expected, shape = config.shape(module), (lora.B.shape[0], lora.A.shape[1])
        if shape != expected:
            shapes = f"{module_name(module)} is {list(expected)} here, {list(shape)} there"
            raise RequestError(f"adapter {adapter.name} is for another model: {shapes}")
