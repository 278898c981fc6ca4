"""The forward pass of a picture model: the same page as refimpl/model.py, with four things changed.

    caption -> embed -> context_refiner \\
                                          layers x { attention over [patches, caption] -> gated mlp } -> patches
    patches -> embed -> noise_refiner   /

Every token of a picture sees every other one: no mask, no cache. Queries and keys are normalised. A second norm stands
behind attention and mlp. And the time, how far the noise has gone, scales what goes into each of the two and gates what
comes out (adaLN, Peebles & Xie 2023): one row per picture, where everything else has one per token. Every linear layer
is `project`, base plus lora_delta, whichever of the two its rows are. That is Z-Image (Z-Image team 2025), as
ZImageTransformer2DModel of diffusers 0.42 computes it.
"""

import math

import numpy as np

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Float, Precision, namespace, rounded, widen
from ..ops import Ops
from .batch import PictureBatch, Rows, Tokens
from .config import FINAL_NORM_EPS, HEAD_NORM_EPS, TIME_FEATURES, module_of
from .weights import PictureModel


def forward(
    model: PictureModel,
    x: Float[Array, "patches d_patch"],
    times: Float[Array, " pictures"],
    captions: Float[Array, "words d_text"],
    batch: PictureBatch,
    adapters: AdapterSlots,
    ops: Ops,
    p: Precision,
) -> Float[Array, "patches d_patch"]:
    """What the model says of every patch of every picture: its velocity, or the clean picture (Flow.prediction).

    x: noisy patches, of all pictures one behind the other; times: of each picture, from 0 (noise) to 1 (picture), on
    the host."""
    config, xp = model.config, namespace(x)

    def project(x: Array, name: str, rows: Rows) -> Float[Array, "rows d_out"]:
        module = module_of(name)
        linear = model.linear(module)
        y = ops.linear(x, linear.weight, linear.bias, p)
        ops.lora_delta(y, x, module, adapters, rows.lora, p)
        return y

    def norm(x: Array, name: str, eps: float = config.norm_eps) -> Array:
        weight = model.vectors[f"{name}.weight"]  # as wide as the model, or as one head
        return ops.rms_norm(x.reshape(-1, weight.size), weight, eps, p).reshape(x.shape)

    def silu(x: Array) -> Array:
        return ops.mlp_activation(x, xp.ones(x.shape, x.dtype), "silu", p)

    def block(x: Array, name: str, rows: Tokens, time: Array | None) -> Float[Array, "rows dim"]:
        scales: list[Array | float] = [1.0] * 4
        if time is not None:
            modulation = project(time, f"{name}.adaLN_modulation.0", batch.pictures)
            modulation = modulation.reshape(-1, 4, config.dim)[rows.pictures]  # a picture's row, at each of its tokens
            scales = [1 + modulation[:, 0], xp.tanh(modulation[:, 1]), 1 + modulation[:, 2], xp.tanh(modulation[:, 3])]
        attention_scale, attention_gate, mlp_scale, mlp_gate = scales

        h = ops.scaled(norm(x, f"{name}.attention_norm1"), attention_scale, p)
        q, k, v = (
            project(h, f"{name}.attention.{part}", rows).reshape(len(h), config.n_heads, -1)
            for part in ("to_q", "to_k", "to_v")
        )
        q = ops.rope(norm(q, f"{name}.attention.norm_q", HEAD_NORM_EPS), *rows.turns, config.rope.interleaved, p)
        k = ops.rope(norm(k, f"{name}.attention.norm_k", HEAD_NORM_EPS), *rows.turns, config.rope.interleaved, p)
        mixed = ops.full_attention(q, k, v, rows.starts, p)
        y = norm(project(mixed, f"{name}.attention.to_out.0", rows), f"{name}.attention_norm2")
        x = rounded(x + ops.scaled(y, attention_gate, p), p.residual)

        h = ops.scaled(norm(x, f"{name}.ffn_norm1"), mlp_scale, p)
        gate, up = (project(h, f"{name}.feed_forward.{part}", rows) for part in ("w1", "w3"))
        h = ops.mlp_activation(gate, up, "silu", p)
        y = norm(project(h, f"{name}.feed_forward.w2", rows), f"{name}.ffn_norm2")
        return rounded(x + ops.scaled(y, mlp_gate, p), p.residual)

    time = xp.asarray(time_features(times * config.t_scale).astype(p.compute))
    time = project(time, "t_embedder.mlp.0", batch.pictures)
    time = project(silu(time), "t_embedder.mlp.2", batch.pictures)

    text = project(norm(captions, "cap_embedder.0"), "cap_embedder.1", batch.words)
    text = xp.concatenate([text, widen(model.vectors["cap_pad_token"], p.compute)])[batch.text.source]
    for i in range(config.n_refiner_layers):
        text = block(text, f"context_refiner.{i}", batch.text, None)

    image = project(x, config.embedder, batch.patches)
    image = xp.concatenate([image, widen(model.vectors["x_pad_token"], p.compute)])[batch.image.source]
    for i in range(config.n_refiner_layers):
        image = block(image, f"noise_refiner.{i}", batch.image, time)

    tokens = xp.concatenate([image, text])[batch.tokens.source]
    for i in range(config.n_layers):
        tokens = block(tokens, f"layers.{i}", batch.tokens, time)

    patches = tokens[batch.patch_tokens]
    scale = 1 + project(silu(time), f"{config.final_layer}.adaLN_modulation.1", batch.pictures)
    centred = patches - patches.mean(axis=1, keepdims=True)  # LayerNorm is RMSNorm of what is centred
    h = ops.rms_norm(centred, xp.ones(config.dim, x.dtype), FINAL_NORM_EPS, p)
    return project(ops.scaled(h, scale[batch.patches.pictures], p), f"{config.final_layer}.linear", batch.patches)


def time_features(times: Float[Array, " pictures"]) -> Float[Array, "pictures features"]:
    """cos and sin of the time at 128 frequencies from 1 to 1/10000 (Vaswani et al. 2017)."""
    half = TIME_FEATURES // 2
    angle = times[:, None] * np.exp(-math.log(10000) * np.arange(half) / half)
    return np.concatenate([np.cos(angle), np.sin(angle)], 1)
