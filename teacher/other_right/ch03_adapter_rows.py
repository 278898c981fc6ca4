"""Right in another way: these must pass."""

from itertools import chain, repeat

import numpy as np


def lists_alone(per_request, lengths):
    k = max([1, *map(len, per_request)])
    return [slots + [-1] * (k - len(slots)) for slots, n in zip(per_request, lengths, strict=True) for _ in range(n)]


def token_by_token(per_request, lengths):
    k = max(1, max(map(len, per_request)))
    ids = np.full((sum(lengths), k), -1, np.int32)
    start = 0
    for slots, n in zip(per_request, lengths, strict=True):
        for j, slot in enumerate(slots):
            ids[start : start + n, j] = slot
        start += n
    return ids


def rows_by_number(per_request, lengths):
    # Whose token is it? Then that request's row.
    k = max(1, max(map(len, per_request)))
    request = np.searchsorted(np.cumsum(lengths), np.arange(sum(lengths)), side="right")
    padded = np.array([list(chain(slots, repeat(-1, k - len(slots)))) for slots in per_request])
    return padded[request]


MUST_PASS = [lists_alone, token_by_token, rows_by_number]
