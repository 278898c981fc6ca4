"""What could be wrong with a plan, said on the host: a kernel is given addresses and believes them."""

from functools import lru_cache

import numpy as np

from ...arrays import Array
from ...errors import LoracleError
from ...lora import NO_ADAPTER
from .start import STORED, ceil_div


def check_array(name: str, x: Array, dtype: str) -> None:
    """Contiguous, and of the kernel's type: a kernel is given an address and believes the rest."""
    wanted = np.dtype(np.int32) if dtype == "int32" else STORED[dtype]
    same = x.dtype == wanted or (dtype == "bfloat16" and x.dtype.name == "bfloat16")
    if not same:
        raise LoracleError(f"{name} is {x.dtype.name}; this kernel was built for {dtype}")
    if not x.flags.c_contiguous:
        raise LoracleError(f"{name} of shape {x.shape} is not contiguous")


def check_plan(name: str, x: Array, length: int) -> None:
    """A plan is one row of int32 on the host."""
    if not isinstance(x, np.ndarray) or x.dtype != np.int32 or x.shape != (length,):
        raise LoracleError(f"{name} must be int32 of shape ({length},) on the host, not {x.dtype} of shape {x.shape}")


def check_adapter_ids(adapter_ids: Array, adapters: int) -> None:
    """An id out of range is another tenant's weights."""
    wrong = np.flatnonzero((adapter_ids < NO_ADAPTER) | (adapter_ids >= adapters))
    if wrong.size:
        t = wrong[0]
        raise LoracleError(f"adapter_ids[{t}] is {adapter_ids[t]}: the bank has slots 0 to {adapters - 1} (-1: none)")


@lru_cache(maxsize=64)
def check_slots(slot_mapping: bytes, capacity: int) -> None:
    """Each token has a slot of its own inside the cache. Memoised: a batch has the same slots in every layer."""
    numbers = np.frombuffer(slot_mapping, np.int32)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= capacity))
    if wrong.size:
        raise LoracleError(f"slot_mapping[{wrong[0]}] is {numbers[wrong[0]]}: the cache has slots 0 to {capacity - 1}")
    found, counts = np.unique(numbers, return_counts=True)
    if (counts > 1).any():
        first, second = np.flatnonzero(numbers == found[counts > 1][0])[:2]
        raise LoracleError(f"slot {numbers[first]} is owned twice: by token {first} and by token {second}")


@lru_cache(maxsize=64)
def check_context(
    query_start_loc: bytes,
    context_lens: bytes,
    block_tables: bytes,
    table: int,
    tokens: int,
    blocks: int,
    block_size: int,
    window: int,
) -> None:
    """Every key that a token sees is in a block of its request that exists."""
    starts, contexts = np.frombuffer(query_start_loc, np.int32), np.frombuffer(context_lens, np.int32)
    tables = np.frombuffer(block_tables, np.int32).reshape(len(contexts), table)
    counts = np.diff(starts)
    if starts[0] != 0 or starts[-1] != tokens or (counts < 0).any():
        raise LoracleError(f"query_start_loc must rise from 0 to the {tokens} tokens, not {starts.tolist()}")
    for r, (n, context) in enumerate(zip(counts, contexts, strict=True)):
        if context < n:
            raise LoracleError(f"request {r}: {n} new tokens in a context of {context}")
        if n == 0:
            continue
        if ceil_div(int(context), block_size) > table:
            raise LoracleError(
                f"request {r}: {context} tokens need {ceil_div(int(context), block_size)} blocks of {block_size}; its "
                f"block table has {table}"
            )
        first = 0 if window == 0 else max(0, context - n - window + 1)
        seen = tables[r, first // block_size : ceil_div(int(context), block_size)]
        wrong = seen[(seen < 0) | (seen >= blocks)]
        if wrong.size:
            raise LoracleError(f"request {r}: its block table names block {wrong[0]}; the cache has {blocks}")
