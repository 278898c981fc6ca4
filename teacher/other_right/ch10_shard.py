"""Right in another way: these must pass."""

import numpy as np


def by_index(A, B, split, ranks):
    parts = []
    for rank in range(ranks):
        rows = slice(rank * len(B) // ranks, (rank + 1) * len(B) // ranks)
        columns = slice(rank * A.shape[1] // ranks, (rank + 1) * A.shape[1] // ranks)
        parts.append((A, B[rows]) if split == "out" else (A[:, columns], B))
    return tuple(parts)


def lists_of_lists(A, B, split, ranks):
    if split == "out":
        size = len(B) // ranks
        return [(A.tolist(), B.tolist()[i : i + size]) for i in range(0, len(B), size)]
    size = A.shape[1] // ranks
    return [([row[i : i + size] for row in A.tolist()], B.tolist()) for i in range(0, A.shape[1], size)]


def padded_with_rank(A, B, split, ranks):
    # A rank of zeros more is no mistake: a kernel may want a multiple of 8.
    A, B = np.vstack([A, 0 * A[:1]]), np.hstack([B, 0 * B[:, :1]])
    return list(by_index(A, B, split, ranks))


MUST_PASS = [by_index, lists_of_lists, padded_with_rank]
