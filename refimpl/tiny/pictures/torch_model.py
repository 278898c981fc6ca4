"""The picture model in PyTorch, for training: the Z-Image transformer, with the names and shapes of diffusers.

A plain form of `ZImageTransformer2DModel` (diffusers 0.42) for pictures of one size and captions of one padded length:
no lists, no masks, no complex numbers. Its state_dict is the file that diffusers loads.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .corpus import CAPTION_TOKENS, CAPTION_WIDTH

FOLD, PATCH = 3, 2  # 3 x 3 pixels are the channels of one, and 2 x 2 of those a token
GRID = 8  # tokens a side: 48 pixels
PATCH_NUMBERS = 108  # 2 x 2 positions of 27 channels
TIME_FEATURES = 256
TIME_HIDDEN = 1024

CONFIG = {
    "_class_name": "ZImageTransformer2DModel",
    "_diffusers_version": "0.42.0",
    "all_f_patch_size": [1],
    "all_patch_size": [2],
    "axes_dims": [12, 12, 12],
    "axes_lens": [2 * CAPTION_TOKENS + 1, 16, 16],
    "cap_feat_dim": CAPTION_WIDTH,
    "dim": 144,
    "in_channels": 27,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 4,
    "n_refiner_layers": 0,
    "norm_eps": 1e-05,
    "qk_norm": True,
    "rope_theta": 256.0,
    "siglip_feat_dim": None,
    "t_scale": 1000.0,
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.42.0",
    "num_train_timesteps": 1000,
    "prediction_type": "sample",  # the model says the clean picture; diffusers' own scheduler expects a velocity
    "shift": 1.0,
}
DIM, HEADS, LAYERS, NORM_EPS = 144, 4, 4, 1e-5


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]"""
        return F.rms_norm(x, x.shape[-1:], self.weight, NORM_EPS)


class Attention(nn.Module):
    """Every token sees every other; q and k are normalised per head, then rotated."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(DIM, DIM, bias=False)])
        self.norm_q, self.norm_k = RMSNorm(DIM // HEADS), RMSNorm(DIM // HEADS)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[images, tokens, DIM] -> [images, tokens, DIM]"""
        q, k, v = (linear(x).unflatten(-1, (HEADS, -1)) for linear in (self.to_q, self.to_k, self.to_v))
        q, k = rotate(self.norm_q(q), cos, sin), rotate(self.norm_k(k), cos, sin)
        output = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.to_out[0](output.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(DIM, DIM * 8 // 3, bias=False) for _ in range(2))
        self.w2 = nn.Linear(DIM * 8 // 3, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., DIM] -> [..., DIM]"""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    """Attention and MLP, each between two norms; the time says a scale before and a gate behind."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(), FeedForward()
        self.attention_norm1, self.attention_norm2 = RMSNorm(DIM), RMSNorm(DIM)
        self.ffn_norm1, self.ffn_norm2 = RMSNorm(DIM), RMSNorm(DIM)
        self.adaLN_modulation = nn.Sequential(nn.Linear(DIM, 4 * DIM))

    def forward(self, x: Tensor, time: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [images, tokens, DIM], time [images, DIM] -> [images, tokens, DIM]"""
        scale_a, gate_a, scale_m, gate_m = self.adaLN_modulation(time)[:, None].chunk(4, dim=2)
        attention = self.attention(self.attention_norm1(x) * (1 + scale_a), cos, sin)
        x = x + gate_a.tanh() * self.attention_norm2(attention)
        mlp = self.feed_forward(self.ffn_norm1(x) * (1 + scale_m))
        return x + gate_m.tanh() * self.ffn_norm2(mlp)


class TimeEmbedder(nn.Module):
    """Sines and cosines of the time, through an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, TIME_HIDDEN), nn.SiLU(), nn.Linear(TIME_HIDDEN, DIM))

    def forward(self, time: Tensor) -> Tensor:
        """[images] in 0 (noise) .. 1 (picture) -> [images, DIM]"""
        half = TIME_FEATURES // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
        angles = time[:, None] * 1000.0 * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class FinalLayer(nn.Module):
    """A norm without weights, a scale from the time, and the numbers of a patch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, PATCH_NUMBERS)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(DIM, DIM))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[images, tokens, DIM] -> [images, tokens, PATCH_NUMBERS]"""
        scale = 1 + self.adaLN_modulation(time)[:, None]
        return self.linear(F.layer_norm(x, (DIM,), eps=1e-6) * scale)


class PictureModel(nn.Module):
    """64 patches of a noisy picture and 32 caption tokens in one sequence -> the clean picture."""

    def __init__(self) -> None:
        super().__init__()
        self.all_x_embedder = nn.ModuleDict({"2-1": nn.Linear(PATCH_NUMBERS, DIM)})
        self.all_final_layer = nn.ModuleDict({"2-1": FinalLayer()})
        self.t_embedder = TimeEmbedder()
        self.cap_embedder = nn.Sequential(RMSNorm(CAPTION_WIDTH), nn.Linear(CAPTION_WIDTH, DIM))
        self.x_pad_token = nn.Parameter(torch.zeros(1, DIM))  # of pictures whose patches are no multiple of 32
        self.cap_pad_token = nn.Parameter(torch.zeros(1, DIM))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        cos, sin = rope_tables()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor, time: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        """Predict the clean picture.

        x [images, 64, 108] noisy patches, time [images] in 0 (noise) .. 1 (picture), captions [images, 32, 256],
        lengths [images] of the captions -> [images, 64, 108]."""
        time_vectors = self.t_embedder(time)
        padding = torch.arange(CAPTION_TOKENS)[None, :, None] >= lengths[:, None, None]
        text = torch.where(padding, self.cap_pad_token, self.cap_embedder(captions))
        h = torch.cat([self.all_x_embedder["2-1"](x), text], dim=1)
        for layer in self.layers:
            h = layer(h, time_vectors, self.cos, self.sin)
        return self.all_final_layer["2-1"](h[:, : GRID * GRID], time_vectors)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbours (2j, 2j + 1) of a head by its angle."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def rope_tables() -> tuple[Tensor, Tensor]:
    """cos and sin [96, 1, head / 2]: patches at (33, row, column), caption tokens at (1 .. 32, 0, 0)."""
    rows, columns = np.divmod(np.arange(GRID * GRID), GRID)
    patches = np.stack([np.full(GRID * GRID, CAPTION_TOKENS + 1), rows, columns], axis=1)
    text = np.stack([np.arange(1, CAPTION_TOKENS + 1), *np.zeros((2, CAPTION_TOKENS), int)], axis=1)
    positions = np.concatenate([patches, text]).astype(np.float64)
    widths = (12, 12, 12)
    angles = [positions[:, i : i + 1] * 256.0 ** (-np.arange(0, width, 2) / width) for i, width in enumerate(widths)]
    angle = np.concatenate(angles, axis=1)[:, None, :]
    return torch.tensor(np.cos(angle), dtype=torch.float32), torch.tensor(np.sin(angle), dtype=torch.float32)


def new_model(seed: int = 0) -> PictureModel:
    """An untrained model of 1.84 million parameters: its layers add half of what they say, its pictures are grey."""
    torch.manual_seed(seed)
    model = PictureModel()
    with torch.no_grad():
        for layer in model.layers:
            modulation = layer.adaLN_modulation[0]
            nn.init.normal_(modulation.weight, std=0.02)
            scale_a, gate_a, scale_m, gate_m = modulation.bias.view(4, DIM)
            scale_a[:], gate_a[:], scale_m[:], gate_m[:] = 0.0, 0.5, 0.0, 0.5
        final = model.all_final_layer["2-1"]
        for parameter in (*final.linear.parameters(), *final.adaLN_modulation.parameters()):
            nn.init.zeros_(parameter)
        nn.init.normal_(model.cap_pad_token, std=0.02)
    return model


def save_base(model: PictureModel, folder: Path) -> None:
    """Write a diffusers folder in float16: transformer/, and scheduler/ which says that the model predicts pictures."""
    transformer, scheduler = folder / "transformer", folder / "scheduler"
    for part, config in ((transformer, CONFIG), (scheduler, SCHEDULER)):
        part.mkdir(parents=True, exist_ok=True)
        name = "config.json" if part is transformer else "scheduler_config.json"
        (part / name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    weights = {name: weight.detach().half().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, transformer / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def load_base(folder: Path) -> PictureModel:
    """The saved base, in float32."""
    model = PictureModel()
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model
