"""Activated LoRA (aLoRA, Greenewald et al. 2025): an adapter that begins to act in the middle of a prompt.

Its config names a run of tokens, the invocation. From the first token of its last occurrence in the prompt on, every
row is LoRA's, all produced tokens among them; the rows before are the base's, bit for bit.

    prompt        7  3  9  4 | 8  8  5  6 | 8  8  2  .      invocation [8, 8], block_size 4
    adapter_ids  -1 -1 -1 -1  -1 -1 -1 -1   1  1  1  1      start 8: the last occurrence
    keyed as      the base    the base      (adapter, 8)

So the blocks that end at or before the start have the base's prefix key, and whoever has them computed, the base or
another aLoRA, has done so for all. That is what the method is for: a judge or a filter, called at the end of a long
conversation, computes nothing of it again.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from .arrays import Array, Float, Int
from .plans import NO_ADAPTER
from .request import Request

NEVER = 2**31 - 1  # the start of an adapter whose invocation is not in the prompt: no position is as large


def activation_start(prompt_ids: Sequence[int], invocation: Sequence[int]) -> int:
    """Return the position from which an adapter acts: where the last occurrence of its invocation begins in the prompt.

    NEVER if there is none, and 0 for an adapter without an invocation, plain LoRA (peft/tuners/lora/variants.py,
    calculate_alora_offsets). What is produced later moves nothing: the start is looked for once, in the prompt."""
    if not invocation:
        return 0
    prompt, n = list(prompt_ids), len(invocation)
    starts = (i for i in reversed(range(len(prompt) - n + 1)) if prompt[i : i + n] == list(invocation))
    return next(starts, NEVER)


def starts_of(request: Request, start: Callable[[Sequence[int], Sequence[int]], int] = activation_start) -> list[int]:
    """Return the position from which each adapter of the request acts."""
    prompt = [int(i) for i in request.prompt_ids]
    return [start(prompt, adapter.config.alora_invocation_tokens) for adapter, _ in request.adapters]


def activated(
    adapter_ids: Int[Array, "tokens k"],
    adapter_weights: Float[Array, "tokens k"],
    starts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    positions: Int[Array, " tokens"],
) -> tuple[Int[Array, "tokens k"], Float[Array, "tokens k"]]:
    """Return the ids and weights with NO_ADAPTER and 0 at the tokens that stand before their adapter's start.

    starts: of each request, the position from which each of its adapters acts; empty where all act from the first."""
    if not any(map(any, starts)):
        return adapter_ids, adapter_weights
    per_request = np.zeros((len(starts), adapter_ids.shape[1]), np.int64)
    for r, positions_of_starts in enumerate(starts):
        per_request[r, : len(positions_of_starts)] = positions_of_starts
    before = positions[:, None] < per_request.repeat(lengths, axis=0)
    return np.where(before, np.int32(NO_ADAPTER), adapter_ids), np.where(before, 0.0, adapter_weights)


def keyed_adapters(
    adapters: Sequence[tuple[bytes, float]], starts: Sequence[int], stop: int
) -> list[tuple[bytes, float]]:
    """Return which adapters, by (digest, weight), the prefix key of a block that ends before position `stop` lists.

    Those that act in the block or before it, and for an aLoRA the start besides: a prompt may name its invocation
    twice, and the same tokens were then computed from another start on."""
    return [
        (hashlib.sha256(digest + start.to_bytes(8, "little")).digest() if start else digest, weight)
        for (digest, weight), start in zip(adapters, starts, strict=True)
        if start < stop
    ]
