"""Which KV blocks two requests of TensorRT-LLM may share: those with equal keys, from the first block on.

A key is (task id or none, the block's tokens, salt), and the blocks hang in a tree, so that a block is also known by
all that come before it. Different adapters never share, nor do an adapter and the base (no id is not id 0). But the id
is all that the key knows of the weights: the same id with other weights shares, and finds keys and values that the old
ones made; two ids with the same weights do not share. Ours knows a digest of the weights (prefix_key in
refimpl/kv_cache.py) and is right in both cases.

After batch_manager/kvCacheManager (BlockKey, buildBlockKeys, numMatchingTokens) as of 2026, without multimodal keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BlockKey:
    """One block of one request, but for the chain of its parents."""

    lora_task_id: int | None
    tokens: tuple[int, ...]
    cache_salt: int | None = None


def block_keys(
    token_ids: Sequence[int], tokens_per_block: int, lora_task_id: int | None = None, cache_salt: int | None = None
) -> list[BlockKey]:
    """The keys of a prompt's blocks, in order; the last may hold fewer tokens."""
    starts = range(0, len(token_ids), tokens_per_block)
    return [BlockKey(lora_task_id, tuple(token_ids[i : i + tokens_per_block]), cache_salt) for i in starts]


def matching_tokens(key: BlockKey, other: BlockKey) -> int:
    """How many tokens, from the first, two blocks at the same place of the tree have in common: none unless they are of
    the same task and salt. A block that matches in part is copied, and its tail computed."""
    if (key.lora_task_id, key.cache_salt) != (other.lora_task_id, other.cache_salt):
        return 0
    return common(key.tokens, other.tokens)


def common(first: Sequence[object], second: Sequence[object]) -> int:
    """The length of the longest common prefix."""
    return next(
        (i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), min(len(first), len(second))
    )


def reused_tokens(keys: Sequence[BlockKey], cached: Sequence[BlockKey]) -> int:
    """How many tokens of a request are found in the blocks that another one has left: whole blocks while the keys are
    equal, then a part of one."""
    blocks = common(keys, cached)
    rest = matching_tokens(keys[blocks], cached[blocks]) if blocks < min(len(keys), len(cached)) else 0
    return sum(len(key.tokens) for key in keys[:blocks]) + rest
