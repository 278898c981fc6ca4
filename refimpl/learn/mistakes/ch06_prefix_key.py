"""Wrong prefix keys: each was seen in an engine, or is easy to write."""

import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..exercise import Attempt, Mistake


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def number_bytes(token_ids: Sequence[int]) -> bytes:
    return np.asarray(token_ids, np.int64).tobytes()


def right_but_for(**wrong: Callable[..., bytes]) -> Attempt:
    """The right key, in which some of its parts are made in another way: parent, tokens, base, p, adapters."""
    ways: dict[str, Callable[..., bytes]] = {
        "parent": bytes,
        "tokens": number_bytes,
        "base": bytes,
        "p": lambda p: repr(p).encode(),
        "adapters": adapter_bytes,
    }

    def prefix_key(*parts: Any) -> bytes:
        return sha256(*[(ways | wrong)[name](part) for name, part in zip(ways, parts, strict=True)])

    return prefix_key


def nothing(part: Any) -> bytes:
    return b""


def adapter_bytes(adapters: Sequence[tuple[bytes, float]]) -> bytes:
    return b"".join(digest + np.float64(weight).tobytes() for digest, weight in adapters)


MISTAKES = (
    Mistake(
        "without_adapter",
        "the adapter changes keys and values from layer 1 on, and your key does not know it.",
        right_but_for(adapters=nothing),
        ("https://github.com/vllm-project/vllm/issues/30931", "https://github.com/LMCache/LMCache/issues/2961"),
    ),
    Mistake(
        "without_adapter_and_precision",
        "the adapter changes keys and values from layer 1 on, and your key does not know it; nor does it know `p`.",
        right_but_for(adapters=nothing, p=nothing),
        ("https://github.com/vllm-project/vllm/issues/30931", "https://github.com/LMCache/LMCache/issues/2961"),
    ),
    Mistake(
        "without_parent",
        "a token's keys and values depend on all tokens before it, those of earlier blocks, too.",
        right_but_for(parent=nothing),
    ),
    Mistake(
        "without_weight",
        "half of an adapter is not the adapter.",
        right_but_for(adapters=lambda adapters: b"".join(dict(adapters))),
    ),
    Mistake(
        "weight_cut_to_a_whole_number",
        "a half and a quarter of an adapter are two things: what does your key make of 0.5, and of 0.25?",
        right_but_for(adapters=lambda adapters: b"".join(digest + number_bytes([int(n)]) for digest, n in adapters)),
    ),
    Mistake(
        "weight_rounded",
        "two weights that read alike when they are rounded are still two.",
        right_but_for(adapters=lambda adapters: b"".join(digest + f"{n:.1f}".encode() for digest, n in adapters)),
    ),
    Mistake(
        "first_adapter_only",
        "a request may sum several adapters.",
        right_but_for(adapters=lambda adapters: adapter_bytes(adapters[:1])),
    ),
    Mistake(
        "without_base",
        "a cache that outlives a restart, or is shared between servers, meets blocks of another base.",
        right_but_for(base=nothing),
    ),
    Mistake(
        "without_precision",
        "the same model in another precision computes other numbers: `p` is not in your key.",
        right_but_for(p=nothing),
    ),
    Mistake(
        "without_base_and_precision",
        "the tokens and the adapter are in your key; what else was the block computed with, and who shares the cache?",
        right_but_for(base=nothing, p=nothing),
    ),
    Mistake(
        "digits_run_together",
        "1, 12 and 11, 2 read alike when their digits are joined.",
        right_but_for(tokens=lambda token_ids: "".join(map(str, token_ids)).encode()),
    ),
    Mistake(
        "tokens_as_bytes",
        "a vocabulary has more ids than a byte has values.",
        right_but_for(tokens=lambda token_ids: bytes(token % 256 for token in token_ids)),
    ),
    Mistake(
        "tokens_in_sixteen_bits",
        "65536 ids are not enough for the vocabularies of today: two of them become one.",
        right_but_for(tokens=lambda token_ids: np.asarray(token_ids, np.int64).astype(np.uint16).tobytes()),
    ),
    Mistake(
        "order_lost",
        "the same tokens in another order are another prompt.",
        right_but_for(tokens=lambda token_ids: number_bytes(sorted(token_ids))),
    ),
    Mistake(
        "first_token_only",
        "every token of the block went into its numbers.",
        right_but_for(tokens=lambda token_ids: number_bytes(token_ids[:1])),
    ),
    Mistake(
        "python_hash",
        "hash() is no fingerprint: hash(-1.0) == hash(-2.0), and an attacker can find more.",
        lambda parent, token_ids, base, p, adapters: number_bytes(
            [hash((parent, tuple(token_ids), base, repr(p), tuple(adapters)))]
        ),
        ("https://github.com/vllm-project/vllm/pull/12621",),
    ),
    Mistake(
        "never_twice",
        "two equal requests have to get equal keys, or nothing is ever found.",
        lambda parent, token_ids, base, p, adapters: uuid.uuid4().bytes,
    ),
)
