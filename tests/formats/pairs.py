"""TensorRT-LLM pairs made by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from refimpl.arrays import DTYPES
from refimpl.config import ModelConfig

# docs/source/advanced/lora.md of TensorRT-LLM: hidden size 4, four layers; q of rank 2, k of rank 4, and a q of rank 8.
DOC_ROWS = [[1, 0, 2], [2, 0, 4], [1, 1, 2], [2, 1, 4], [1, 2, 2], [1, 3, 8]]
DOC_BASE = ModelConfig(
    vocab_size=11,
    hidden_size=4,
    intermediate_size=6,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=2,
)


def doc_weights(dtype: str = "float16") -> np.ndarray:
    """The example's rows: row i holds 100 i + 1, 100 i + 2, ... in the order in which they lie, then zeros."""
    weights = np.zeros((1, len(DOC_ROWS), 64), np.float32)
    for i, (_, _, rank) in enumerate(DOC_ROWS):
        weights[0, i, : rank * 8] = 100 * i + 1 + np.arange(rank * 8)
    return weights.astype(DTYPES[dtype])


def write(folder: Path, weights: np.ndarray | None = None, config: Sequence | np.ndarray = DOC_ROWS) -> Path:
    """Both files, by numpy alone."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = doc_weights() if weights is None else weights
    stored = weights.view(np.dtype("V2")) if weights.dtype == DTYPES["bfloat16"] else weights
    np.save(folder / "model.lora_weights.npy", stored)
    config = config if isinstance(config, np.ndarray) else np.array([config], np.int32)
    np.save(folder / "model.lora_config.npy", config)
    return folder
