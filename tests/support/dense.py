"""The model a second time, from the papers and not from refimpl: no cache, no blocks, no batch, no adapters.

Adapters are merged into the weights before (`merged`), so that nothing here knows of LoRA either. Plain NumPy, float64.
"""

import dataclasses

import numpy as np

from refimpl import Model, Request
from refimpl.adapter import Adapter
from refimpl.config import EMBED, LAYER_MODULES, LM_HEAD, Module, Rope
from refimpl.weights import Linear

from .experts import mixed

PARENT = {m: "mlp" if m in ("gate_proj", "up_proj", "down_proj") else "self_attn" for m in LAYER_MODULES}
PARENT |= dict.fromkeys(("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"), "self_attn")


def dense_logits(model: Model, token_ids: list[int]) -> np.ndarray:
    """Logits of every token of one sequence: [len, vocab]."""
    c = model.config
    x, n = model.embed_tokens[token_ids], len(token_ids)
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    seen = (distance >= 0) & (distance < (c.sliding_window or n))
    for layer in model.layers:
        linears = layer.linears
        h = normed(x, layer.norms["input_layernorm"], c.rms_norm_eps)
        q, k, v = (apply(linears[name], h).reshape(n, -1, c.head_dim) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = rotated(q, c.rope), rotated(k, c.rope)
        heads = []
        for i in range(c.num_attention_heads):
            j = i * c.num_key_value_heads // c.num_attention_heads
            scores = np.where(seen, q[:, i] @ k[:, j].T / c.head_dim**0.5, -np.inf)
            e = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(e / e.sum(1, keepdims=True) @ v[:, j])
        x = x + apply(linears["o_proj"], np.concatenate(heads, axis=1))
        h = normed(x, layer.norms["post_attention_layernorm"], c.rms_norm_eps)
        if "gate_proj" not in linears:
            x = x + mixed(c, layer, h)
            continue
        gate = apply(linears["gate_proj"], h)
        x = x + apply(linears["down_proj"], gate / (1 + np.exp(-gate)) * apply(linears["up_proj"], h))
    return apply(model.lm_head, normed(x, model.norm, c.rms_norm_eps))


def apply(w: Linear, x: np.ndarray) -> np.ndarray:
    return x @ w.weight.T + (0 if w.bias is None else w.bias)


def normed(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def rotated(x: np.ndarray, rope: Rope) -> np.ndarray:
    """A pair of channels is one complex number, and rotation is a product with e^(i angle)."""
    n, half = x.shape[0], x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    z = z * np.exp(1j * np.outer(np.arange(n), wave_numbers(rope, 2 * half)))[:, None, :]
    return np.concatenate([z.real, z.imag], axis=-1)


def wave_numbers(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians per token of each pair. For llama3, wave by wave, as in the text of the Llama 3.1 release."""
    found = []
    for i in range(0, head_dim, 2):
        w = rope.theta ** (-i / head_dim)
        length, context = 2 * np.pi / w, rope.original_max_position_embeddings
        if rope.type == "linear" or (rope.type == "llama3" and length > context / rope.low_freq_factor):
            w = w / rope.factor
        elif rope.type == "llama3" and length >= context / rope.high_freq_factor:
            smooth = (context / length - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
            w = (1 - smooth) * w / rope.factor + smooth * w
        found.append(w)
    return np.array(found)


def merged(model: Model, request: Request) -> Model:
    """A base model with the request's adapters merged: W + sum(weight * scale * B A), and what they replace."""
    layers = [
        dataclasses.replace(layer, linears={m: with_adapters(model, request, (i, m)) for m in layer.linears})
        for i, layer in enumerate(model.layers)
    ]
    embed = with_adapters(model, request, EMBED).weight
    return dataclasses.replace(
        model, embed_tokens=embed, layers=tuple(layers), lm_head=with_adapters(model, request, LM_HEAD)
    )


def with_adapters(model: Model, request: Request, module: Module) -> Linear:
    base = model.linear(module)
    weight, bias = base.weight, base.bias
    for adapter, _ in request.adapters:
        weight, bias = adapter.replaced.get(module, weight), adapter.biases.get(module, bias)
        if module in adapter.tokens:
            weight = weight.copy()
            for token, row in zip(adapter.tokens[module].ids, adapter.tokens[module].rows, strict=True):
                weight[token] = row
    for adapter, share in request.adapters:
        if module in adapter.lora:
            stored, scale = adapter.lora[module], share * scale_of(adapter, module)
            delta = scale * stored.B @ stored.A
            weight = weight + (delta.T if module == EMBED else delta)
            if stored.magnitude is not None:
                weight = stretched(weight, stored.magnitude, axis=0 if module == EMBED else 1)
            if stored.bias is not None:
                bias = scale * stored.bias + (0 if bias is None else bias)
    return Linear(weight, bias)


def stretched(weight: np.ndarray, magnitude: np.ndarray, axis: int) -> np.ndarray:
    """DoRA: the directions of a weight along one axis, each at the length that the adapter gives it."""
    directions = weight / np.sqrt(np.sum(weight**2, axis=axis, keepdims=True))
    return directions * np.expand_dims(magnitude, axis)


def scale_of(adapter: Adapter, module: Module) -> float:
    """alpha / r, or alpha / sqrt(r); alpha is the pattern's where one names the module."""
    layer, leaf = module
    name = leaf if layer < 0 else f"model.layers.{layer}.{leaf if '.' in leaf else f'{PARENT[leaf]}.{leaf}'}"
    alpha, r = adapter.config.lora_alpha, adapter.lora[module].A.shape[0]
    for pattern, value in adapter.config.alpha_pattern.items():
        alpha = value if name == pattern or name.endswith("." + pattern) else alpha
    return alpha / r**0.5 if adapter.config.use_rslora else alpha / r
