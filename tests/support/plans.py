"""Parts of a plan, for tests that call one step and need no whole batch."""

import numpy as np

from refimpl.plans import AttentionMetadata, LoraMapping


def mapping(adapter_ids: np.ndarray, adapter_weights: np.ndarray | None = None) -> LoraMapping:
    """Which adapters each row gets: [rows] or [rows, k]; at a weight of 1 unless weights are given."""
    ids = np.atleast_2d(adapter_ids.T).T
    return LoraMapping.of(ids, np.ones(ids.shape) if adapter_weights is None else adapter_weights.reshape(ids.shape))


def metadata(starts: np.ndarray, contexts: np.ndarray, tables: np.ndarray, cache: np.ndarray) -> AttentionMetadata:
    """What attention reads, for queries whose keys are in this cache [blocks, block_size, ...]."""
    return AttentionMetadata.of(starts, contexts, tables, np.zeros(0, np.int32), *cache.shape[:2])


def writing(slots: np.ndarray, cache: np.ndarray) -> AttentionMetadata:
    """What write_kv reads: tokens to be written to these slots."""
    nothing = np.zeros(0, np.int32)
    return AttentionMetadata.of(np.zeros(1, np.int32), nothing, nothing[:, None], slots, *cache.shape[:2])
