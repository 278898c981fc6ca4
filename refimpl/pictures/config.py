"""What a picture model is: a frozen PictureConfig, in the names of ZImageTransformer2DModel's config.json (diffusers).

The axes of these files, beside those of refimpl/config.py:

    pictures  the requests of one batch
    patches   patch * patch latent pixels each, of all pictures, one behind the other;  d_patch: numbers in a patch
    tokens    patches, caption tokens, or both, one picture behind the other
    dim       the width of the residual stream;  d_text: the width of a caption's hidden states;  d_time: of the time
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ..config import Module, Rope

TIME_FEATURES, TIME_HIDDEN, TIME_WIDTH = 256, 1024, 256  # fixed in transformer_z_image.py; TIME_WIDTH is at most dim
HEAD_NORM_EPS, FINAL_NORM_EPS = 1e-5, 1e-6  # likewise: of queries and keys, and of the norm before the last layer
PAD_TO = 32  # patches and captions are each filled up to a multiple of it, with a token that the model has learnt

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PictureConfig:
    """The shape of a Z-Image transformer."""

    in_channels: int  # of the latent: what a pixel of it has
    dim: int
    n_layers: int
    n_refiner_layers: int  # twice: over the patches alone, and over the caption alone
    n_heads: int
    cap_feat_dim: int  # d_text
    axes_dims: tuple[int, int, int]  # channels of a head that turn with (token of the caption, row, column)
    axes_lens: tuple[int, int, int]  # how many positions each of the three has
    patch_size: int = 2
    norm_eps: float = 1e-5
    rope_theta: float = 256.0
    t_scale: float = 1000.0

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.dim // self.n_heads

    @property
    def d_patch(self) -> int:
        """How many numbers a patch has."""
        return self.patch_size**2 * self.in_channels

    @property
    def d_time(self) -> int:
        """How wide the time is where it enters the layers."""
        return min(self.dim, TIME_WIDTH)

    @property
    def rope(self) -> Rope:
        """How each of the three axes turns: neighbouring channels are a pair."""
        return Rope(theta=self.rope_theta, interleaved=True)

    @property
    def num_hidden_layers(self) -> int:
        """What the text model's config calls n_layers."""
        return self.n_layers

    @property
    def embedder(self) -> str:
        """The name of the layer that reads patches."""
        return f"all_x_embedder.{self.patch_size}-1"

    @property
    def final_layer(self) -> str:
        """The name of the layers that write them."""
        return f"all_final_layer.{self.patch_size}-1"

    def shape(self, module: Module) -> tuple[int, int]:
        """(d_out, d_in) of a module's weight. KeyError for a module that the model does not have."""
        return self.linears[module][:2]

    @property
    def linears(self) -> dict[Module, tuple[int, int, bool]]:
        """(d_out, d_in, has a bias) of every module that LoRA can target, in the order of the forward pass."""
        return _linears(self)

    @property
    def vectors(self) -> dict[str, Shape]:
        """The shape of every other tensor: norms, and the tokens that fill up."""
        shapes: dict[str, Shape] = {"x_pad_token": (1, self.dim), "cap_pad_token": (1, self.dim)}
        shapes["cap_embedder.0.weight"] = (self.cap_feat_dim,)
        for block, _ in blocks(self):
            for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
                shapes[f"{block}.{norm}.weight"] = (self.dim,)
            for norm in ("norm_q", "norm_k"):
                shapes[f"{block}.attention.{norm}.weight"] = (self.head_dim,)
        return shapes


def blocks(config: PictureConfig) -> Iterator[tuple[str, bool]]:
    """(name, whether the time scales it) of every transformer layer, in the order of the forward pass."""
    yield from ((f"context_refiner.{i}", False) for i in range(config.n_refiner_layers))
    yield from ((f"noise_refiner.{i}", True) for i in range(config.n_refiner_layers))
    yield from ((f"layers.{i}", True) for i in range(config.n_layers))


@lru_cache
def _linears(config: PictureConfig) -> dict[Module, tuple[int, int, bool]]:
    dim, d_mlp, d_time = config.dim, int(config.dim / 3 * 8), config.d_time
    shapes = {
        "t_embedder.mlp.0": (TIME_HIDDEN, TIME_FEATURES, True),
        "t_embedder.mlp.2": (d_time, TIME_HIDDEN, True),
        "cap_embedder.1": (dim, config.cap_feat_dim, True),
        config.embedder: (dim, config.d_patch, True),
    }
    for block, timed in blocks(config):
        if timed:
            shapes[f"{block}.adaLN_modulation.0"] = (4 * dim, d_time, True)
        shapes |= {f"{block}.attention.{name}": (dim, dim, False) for name in ("to_q", "to_k", "to_v", "to_out.0")}
        shapes |= {f"{block}.feed_forward.{name}": (d_mlp, dim, False) for name in ("w1", "w3")}
        shapes[f"{block}.feed_forward.w2"] = (dim, d_mlp, False)
    shapes[f"{config.final_layer}.adaLN_modulation.1"] = (dim, d_time, True)
    shapes[f"{config.final_layer}.linear"] = (config.d_patch, dim, True)
    return {module_of(name): shape for name, shape in shapes.items()}


@lru_cache(maxsize=4096)
def module_of(name: str) -> Module:
    """The module of a dotted name: layers.3.attention.to_q -> (3, 'attention.to_q'), cap_embedder.1 -> (-1, the same).

    `config.module_name` is the way back."""
    match = re.fullmatch(r"layers\.(\d{1,6})\.(.+)", name)
    return (int(match[1]), match[2]) if match else (-1, name)
