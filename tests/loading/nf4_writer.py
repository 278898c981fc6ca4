"""Checkpoints as transformers saves a model that was loaded with load_in_4bit, written by hand."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from refimpl.loading.bitsandbytes_4bit import NF4

CONFIG = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_quant_storage": "uint8",
}


def nf4_tensors(name: str, weight: np.ndarray, nested: bool, dtype: str, blocksize: int = 64) -> dict[str, np.ndarray]:
    """The tensors of one weight: blocks of the nearest NF4 numbers, and absmax quantised once more if nested."""
    flat = np.zeros(-(-weight.size // blocksize) * blocksize, np.float32)
    flat[: weight.size] = weight.reshape(-1)
    blocks = flat.reshape(-1, blocksize)
    absmax = abs(blocks).max(axis=1)
    codes = (
        abs(blocks[..., None] / np.maximum(absmax, 1e-9)[:, None, None] - NF4)
        .argmin(axis=-1)
        .reshape(-1)[: weight.size]
    )
    codes = np.pad(codes, (0, weight.size % 2)).astype(np.uint8)
    packed = codes[::2] << 4 | codes[1::2]
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": blocksize, "dtype": dtype, "shape": list(weight.shape)}
    tensors = {name: packed[:, None], f"{name}.quant_map": NF4, f"{name}.absmax": absmax}
    if nested:
        size, offset = 4, float(absmax.mean())
        groups = np.pad(absmax - np.float32(offset), (0, -len(absmax) % size)).reshape(-1, size)
        scales = np.maximum(abs(groups).max(axis=1), np.float32(1e-8))
        quant_map = np.linspace(-1, 1, 256).astype(np.float32)
        nearest = abs((groups / scales[:, None])[..., None] - quant_map).argmin(axis=-1).reshape(-1)[: len(absmax)]
        tensors[f"{name}.absmax"] = nearest.astype(np.uint8)
        tensors |= {f"{name}.nested_absmax": scales, f"{name}.nested_quant_map": quant_map}
        state |= {"nested_blocksize": size, "nested_dtype": "float32", "nested_offset": offset}
    return tensors | {f"{name}.quant_state.bitsandbytes__nf4": state_bytes(state)}


def state_bytes(state: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(state).encode(), np.uint8)


def checkpoint(tensors: Mapping[str, np.ndarray], nested: bool, dtype: str) -> dict[str, np.ndarray]:
    """All linear layers but the head in 4 bits, the rest in the dtype."""
    result: dict[str, np.ndarray] = {}
    for name, x in tensors.items():
        if name.endswith("_proj.weight"):
            result |= nf4_tensors(name, x, nested, dtype)
        else:
            result[name] = x.astype("float32") if dtype == "float32" else x
    return result
