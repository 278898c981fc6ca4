"""Right in another way: these must pass."""

import hashlib

import numpy as np


def adapter_in_the_first_block_only(parent, token_ids, base, p, adapters):
    # A chain carries it on.
    parts = b"" if parent else b"".join(digest + np.float64(weight).tobytes() for digest, weight in adapters)
    return hashlib.sha256(parent + np.asarray(token_ids, np.int64).tobytes() + base + repr(p).encode() + parts).digest()


def repr_of_everything(parent, token_ids, base, p, adapters):
    return hashlib.sha256(repr((parent, list(token_ids), base, repr(p), list(adapters))).encode()).digest()


MUST_PASS = [adapter_in_the_first_block_only, repr_of_everything]
