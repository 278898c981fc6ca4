"""GGUF bases written by the gguf package from tensors in transformers' names, whole or with one thing wrong."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from refimpl.config import ModelConfig
from refimpl.loading.checkpoint import expected_tensors
from refimpl.loading.gguf_file import TYPES
from refimpl.loading.gguf_names import interleaved, rotary_heads
from refimpl.loading.gguf_tensors import gguf_spelling

# Rows of 256 numbers, which K-quants need; nothing square but o_proj's, whose sides are both such rows.
WIDE = ModelConfig(
    vocab_size=13,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=1,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    max_position_embeddings=64,
    bos_token_id=None,
)


def metadata(config: ModelConfig) -> dict[str, Any]:
    """What llama.cpp's converter says of a Llama without a vocabulary."""
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope.theta,
        "tokenizer.ggml.model": "no_vocab",
    }


def blocks_of(tensor: np.ndarray, kind: str) -> np.ndarray:
    """The numbers as blocks of a type; of K-quants, which the package cannot make, blocks of random bits."""
    if kind in ("F32", "F16"):
        return tensor.astype({"F32": np.float32, "F16": np.float16}[kind])
    kinds = GGMLQuantizationType
    if not kind.endswith("_K"):
        return gguf.quants.quantize(tensor.astype(np.float32), kinds[kind])
    block, size = next((block, size) for name, block, size in TYPES.values() if name == kind)
    rng = np.random.default_rng(tensor.shape)
    blocks = rng.integers(0, 256, (tensor.shape[0], tensor.shape[1] // block, size), np.uint8)
    typical, starts = SCALES[kind]
    for start in starts:  # random bits of a float16 may be NaN, and are anything but a weight's scale
        scales = rng.uniform(typical / 3, 3 * typical, blocks.shape[:2]).astype("<f2")
        blocks[..., start : start + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(tensor.shape[0], -1)


# A size with which the weights are of order 1/16, and where the float16 scales lie in a block (ggml/src/ggml-common.h).
SCALES = {
    "Q2_K": (5e-3, (80, 82)),
    "Q3_K": (1e-3, (108,)),
    "Q4_K": (3e-4, (0, 2)),
    "Q5_K": (1e-4, (0, 2)),
    "Q6_K": (5e-5, (208,)),
}


def write_gguf(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    kind: str = "F32",
    extra: Mapping[str, np.ndarray] | None = None,
    split: int = 0,
    **changes: Any,
) -> dict[str, np.ndarray]:
    """Write a base whose matrices have this type, and return each tensor's blocks under its name in the file.

    split: how many tensors a part has at most; 0 is one file.
    A change to ... leaves a metadata key out; `_` in its name stands for a dot where it is doubled."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.kv_data[0].pop("general.architecture")
    given = metadata(config) | {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in given.items():
        if value is not ...:
            add(writer, key, value)
    written = {}
    for name, tensor in tensors.items():
        rows = interleaved(tensor, rotary_heads(name.split(".")[-2], config))
        spelt = gguf_spelling(name)
        written[spelt] = blocks_of(rows, kind) if rows.ndim == 2 else rows.astype(np.float32)
        raw = kind if rows.ndim == 2 and kind not in ("F32", "F16") else None
        writer.add_tensor(spelt, written[spelt], raw_dtype=raw and GGMLQuantizationType[raw])
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def add(writer: Any, key: str, value: Any) -> None:
    """Add one metadata entry in the type that llama.cpp's converter gives it."""
    kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_key_value(key, value, kinds[type(value)])


def model_tensors(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors of every name, norms around 1, matrices so that activations stay of order 1."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape) / np.sqrt(shape[-1]) + (len(shape) == 1)).astype(np.float32)
        for name, shape in expected_tensors(config).items()
    }


def cut_anywhere(raw: bytes, pieces: int) -> list[bytes]:
    """Beginnings of a file, every length of its header among them, and the rest in steps."""
    return [raw[:length] for length in itertools.chain(range(1024), range(1024, len(raw), max(1, len(raw) // pieces)))]
