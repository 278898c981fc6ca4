"""GPTQ and AWQ checkpoints, packed by hand: one number after the other into its word."""

from collections.abc import Mapping
from typing import Any

import numpy as np

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 4, "desc_act": True, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 4, "version": "gemm", "zero_point": True}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def packed(numbers: np.ndarray, bits: int, axis: int, order: list[int] | None = None) -> np.ndarray:
    """int32 words along an axis. order: which of a word's numbers come first."""
    rows = np.moveaxis(numbers, axis, 0).astype(np.int64)
    n = 32 // bits
    words = np.zeros((len(rows) // n, *rows.shape[1:]), np.int64)
    for word in range(len(words)):
        for i, j in enumerate(order or range(n)):
            words[word] |= rows[word * n + j] << (bits * i)
    return np.moveaxis(words.astype(np.uint32).view(np.int32), 0, axis)


def random_weight(
    rng: np.random.Generator, module: str, shape: tuple[int, int], config: Mapping[str, Any], dtype: Any = np.float16
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(the tensors of one weight [d_out, d_in], the numbers that it stands for): integers, zeros, scales and groups are
    drawn."""
    (d_out, d_in), bits, awq = shape, config["bits"], config["quant_method"] == "awq"
    count = d_in // config["group_size"]
    q, zeros = rng.integers(0, 2**bits, (d_in, d_out)), rng.integers(1, 2**bits, (count, d_out))
    scales = (rng.uniform(0.02, 0.2, (count, d_out)) * 8 / 2**bits).astype(dtype)
    groups = np.repeat(np.arange(count), config["group_size"]) if awq else rng.permutation(np.arange(d_in) % count)
    weight = np.zeros((d_out, d_in), dtype)
    for j, i in np.ndindex(weight.shape):
        weight[j, i] = (np.float64(q[i, j]) - zeros[groups[i], j]) * np.float64(scales[groups[i], j])
    stored = zeros - (config.get("checkpoint_format") == "gptq")
    order = AWQ_ORDER if awq else None
    tensors = {
        f"{module}.qweight": packed(q, bits, 1 if awq else 0, order),
        f"{module}.qzeros": packed(stored, bits, 1, order),
        f"{module}.scales": scales,
    }
    return tensors | ({} if awq else {f"{module}.g_idx": groups.astype(np.int32)}), weight


def checkpoint(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(all linear layers but the head replaced by packed ones, the numbers that these stand for)."""
    rng, stored, weights = np.random.default_rng(seed), {}, {}
    for name, x in tensors.items():
        if name.endswith("_proj.weight"):
            parts, weights[name] = random_weight(rng, name.removesuffix(".weight"), x.shape, config)
            stored |= parts
        else:
            stored[name] = x
    return stored, weights
