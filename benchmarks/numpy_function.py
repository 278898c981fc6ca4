"""An engine that is a function, in plain NumPy and float32, from the files alone: nothing of it is Loracle's.

    loracle check --engine benchmarks.numpy_function:serve --model random

One request after another, without a cache, LoRA beside the weights. benchmarks/clean.py counts its false alarms.
"""

import json
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

Tensors = dict[str, np.ndarray]
PREFIX = "base_model.model."


@lru_cache(maxsize=2)
def base_of(folder: str) -> tuple[dict, Tensors]:
    """Return config.json and the tensors of a Llama's folder."""
    tensors: Tensors = {}
    for file in Path(folder).glob("*.safetensors"):
        tensors |= {name: x.astype(np.float32) for name, x in load_file(file).items()}  # bfloat16, some of them
    return json.loads((Path(folder) / "config.json").read_text("utf-8")), tensors


@lru_cache(maxsize=32)
def adapter_of(folder: str, stamp: int) -> tuple[dict, Tensors]:
    """Return adapter_config.json and the tensors of a PEFT folder. stamp: when it was written."""
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    names = {name.removeprefix(PREFIX): x.astype(np.float32) for name, x in tensors.items()}
    return json.loads((Path(folder) / "adapter_config.json").read_text("utf-8")), names


def pattern(patterns: dict | None, name: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of a module's name."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name)), default)


def linear(x: np.ndarray, name: str, base: Tensors, adapters: list) -> np.ndarray:
    """x W^T + b, and s (x A^T B^T + b') of each adapter."""
    y = x @ base[f"{name}.weight"].T
    if f"{name}.bias" in base:
        y = y + base[f"{name}.bias"]
    for (config, tensors), weight in adapters:
        if (A := tensors.get(f"{name}.lora_A.weight")) is None:
            continue
        r = pattern(config["rank_pattern"], name, config["r"])
        alpha = pattern(config["alpha_pattern"], name, config["lora_alpha"])
        delta = (x @ A.T) @ tensors[f"{name}.lora_B.weight"].T
        delta = delta + tensors.get(f"{name}.lora_B.bias", np.float32(0))
        y = y + np.float32(weight * alpha / (r**0.5 if config["use_rslora"] else r)) * delta
    return y


def frequencies(config: dict, dim: int) -> np.ndarray:
    """Return radians per position of each pair of channels; Llama 3.1's where the rope is scaled."""
    scaling = config.get("rope_scaling") or {}
    turn = 1.0 / config["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    if scaling.get("rope_type") != "llama3":
        return turn
    low, high = scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)
    turns = scaling["original_max_position_embeddings"] * turn / (2 * np.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return keep * turn + (1 - keep) * turn / scaling["factor"]


def rotated(x: np.ndarray, config: dict) -> np.ndarray:
    """x [tokens, heads, dim], each half of a head turned by its position."""
    half = x.shape[2] // 2
    angles = np.arange(len(x))[:, None] * frequencies(config, x.shape[2])
    cos, sin = (f(angles).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def normed(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight


def logits(config: dict, base: Tensors, adapters: list, token_ids: list[int]) -> np.ndarray:
    """Return the logits [tokens, vocab] of one text."""
    x, n, eps = base["model.embed_tokens.weight"][token_ids], len(token_ids), config["rms_norm_eps"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        h = normed(x, base[f"{at}.input_layernorm.weight"], eps)
        q, k, v = (linear(h, f"{at}.self_attn.{p}_proj", base, adapters).reshape(n, -1, dim) for p in "qkv")
        q, k = rotated(q, config), rotated(k, config)
        k, v = (np.repeat(y, heads // kv, axis=1) for y in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.float32(dim**0.5)
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, np.float32(-np.inf))
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = np.einsum("hqk,khd->qhd", e / e.sum(axis=-1, keepdims=True), v).reshape(n, -1)
        x = x + linear(attended, f"{at}.self_attn.o_proj", base, adapters)
        h = normed(x, base[f"{at}.post_attention_layernorm.weight"], eps)
        gate, up = (linear(h, f"{at}.mlp.{p}_proj", base, adapters) for p in ("gate", "up"))
        x = x + linear(gate / (1 + np.exp(-gate)) * up, f"{at}.mlp.down_proj", base, adapters)
    head = base.get("lm_head.weight", base["model.embed_tokens.weight"])
    return linear(normed(x, base["model.norm.weight"], eps), "lm_head", {"lm_head.weight": head}, adapters)


def serve(model_dir: str, requests: list[dict]) -> list[dict]:
    """Answer each request, greedily."""
    config, base = base_of(model_dir)
    answers = []
    for request in requests:
        folders = request.get("adapters") or ([(request["adapter_dir"], 1.0)] if request["adapter_dir"] else [])
        adapters = [
            (adapter_of(folder, (Path(folder) / "adapter_config.json").stat().st_mtime_ns), weight)
            for folder, weight in folders
        ]
        tokens: list[int] = []
        for _ in range(request["max_new_tokens"]):
            rows = logits(config, base, adapters, [*request["prompt_ids"], *tokens])
            tokens.append(int(rows[-1].argmax()))
        answers.append({"logits": rows, "token_ids": tokens})
    return answers


serve.capabilities = {  # type: ignore[attr-defined]
    "features": ["rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "sums",
                 "rope_scaling"],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
}  # fmt: skip
