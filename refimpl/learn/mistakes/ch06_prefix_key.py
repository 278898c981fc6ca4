"""Wrong prefix keys: each was seen in an engine, or is easy to write."""

import hashlib
from collections.abc import Sequence

import numpy as np

from ..exercise import Mistake


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def number_bytes(token_ids: Sequence[int]) -> bytes:
    return np.asarray(token_ids, np.int64).tobytes()


def adapter_bytes(adapters: Sequence[tuple[bytes, float]]) -> bytes:
    return b"".join(digest + np.float64(weight).tobytes() for digest, weight in adapters)


MISTAKES = (
    Mistake(
        "without_adapter",
        "the adapter changes keys and values from layer 1 on, and your key does not know it.",
        lambda parent, token_ids, base, p, adapters: sha256(parent, number_bytes(token_ids), base),
        ("https://github.com/vllm-project/vllm/issues/30931", "https://github.com/LMCache/LMCache/issues/2961"),
    ),
    Mistake(
        "without_parent",
        "a token's keys and values depend on all tokens before it, those of earlier blocks, too.",
        lambda parent, token_ids, base, p, adapters: sha256(number_bytes(token_ids), base, adapter_bytes(adapters)),
    ),
    Mistake(
        "without_weight",
        "half of an adapter is not the adapter.",
        lambda parent, token_ids, base, p, adapters: sha256(parent, number_bytes(token_ids), base, *dict(adapters)),
    ),
    Mistake(
        "weight_rounded",
        "two weights that read alike when they are rounded are still two.",
        lambda parent, token_ids, base, p, adapters: sha256(
            parent, number_bytes(token_ids), base, *(digest + f"{weight:.1f}".encode() for digest, weight in adapters)
        ),
    ),
    Mistake(
        "first_adapter_only",
        "a request may sum several adapters.",
        lambda parent, token_ids, base, p, adapters: sha256(
            parent, number_bytes(token_ids), base, adapter_bytes(adapters[:1])
        ),
    ),
    Mistake(
        "without_base",
        "a cache that outlives a restart, or is shared between servers, meets blocks of another base.",
        lambda parent, token_ids, base, p, adapters: sha256(parent, number_bytes(token_ids), adapter_bytes(adapters)),
    ),
    Mistake(
        "digits_run_together",
        "1, 12 and 11, 2 read alike when their digits are joined.",
        lambda parent, token_ids, base, p, adapters: sha256(
            parent, "".join(map(str, token_ids)).encode(), base, adapter_bytes(adapters)
        ),
    ),
    Mistake(
        "tokens_as_bytes",
        "a vocabulary has more ids than a byte has values.",
        lambda parent, token_ids, base, p, adapters: sha256(
            parent, bytes(token % 256 for token in token_ids), base, adapter_bytes(adapters)
        ),
    ),
    Mistake(
        "order_lost",
        "the same tokens in another order are another prompt.",
        lambda parent, token_ids, base, p, adapters: sha256(
            parent, number_bytes(sorted(token_ids)), base, adapter_bytes(adapters)
        ),
    ),
    Mistake(
        "first_token_only",
        "every token of the block went into its numbers.",
        lambda parent, token_ids, base, p, adapters: sha256(
            parent, number_bytes(token_ids[:1]), base, adapter_bytes(adapters)
        ),
    ),
    Mistake(
        "python_hash",
        "hash() is no fingerprint: hash(-1.0) == hash(-2.0), and an attacker can find more.",
        lambda parent, token_ids, base, p, adapters: hash((parent, tuple(token_ids), base, tuple(adapters))),
        ("https://github.com/vllm-project/vllm/pull/12621",),
    ),
    Mistake(
        "never_twice",
        "two equal requests have to get equal keys, or nothing is ever found.",
        lambda parent, token_ids, base, p, adapters: object(),
    ),
)
