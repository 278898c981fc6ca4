"""What could be wrong with the arrays of a launch, said on the host: a kernel is given addresses and believes them.

Plans are checked before, with the batch (refimpl/checks.py)."""

import numpy as np

from ...arrays import Array
from ...errors import LoracleError
from ...plans import NO_ADAPTER, AttentionMetadata
from .start import STORED


def check_array(name: str, x: Array, dtype: str) -> None:
    """The array is contiguous, and of the kernel's type."""
    expected = np.dtype(np.int32) if dtype == "int32" else STORED[dtype]
    same = x.dtype == expected or (dtype == "bfloat16" and x.dtype.name == "bfloat16")
    if not same:
        raise LoracleError(f"{name} is {x.dtype.name}; this kernel was built for {dtype}")
    if not x.flags.c_contiguous:
        raise LoracleError(f"{name} of shape {x.shape} is not contiguous")


def check_adapter_ids(adapter_ids: Array, adapters: int) -> None:
    """Every id is NO_ADAPTER or that of a packed adapter: one out of range is another tenant's weights."""
    wrong = np.flatnonzero((adapter_ids < NO_ADAPTER) | (adapter_ids >= adapters))
    if wrong.size:
        t = wrong[0]
        raise LoracleError(f"adapter_ids[{t}] is {adapter_ids[t]}: there are slots 0 to {adapters - 1} (-1: none)")


def check_cache(metadata: AttentionMetadata, k_cache: Array, v_cache: Array) -> None:
    """The metadata was made for a cache of this many blocks of this size."""
    made_for = (metadata.num_blocks, metadata.block_size)
    if k_cache.shape[:3] != v_cache.shape[:3] or k_cache.shape[:2] != made_for:
        raise LoracleError(
            f"caches {k_cache.shape} and {v_cache.shape}: the plan is of {made_for[0]} blocks of {made_for[1]}"
        )
