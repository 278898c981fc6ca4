"""Right in another way: these must pass."""

import numpy as np


def token_by_token(y, x, A, B, scale, adapter_ids):
    for t, i in enumerate(adapter_ids):
        if i >= 0:
            y[t] += scale[i] * (B[i] @ (A[i] @ x[t]))


def boolean_masks(y, x, A, B, scale, adapter_ids):
    for i, (A_i, B_i) in enumerate(zip(A, B, strict=True)):
        mask = adapter_ids == i
        if mask.any():
            y[mask] = y[mask] + (scale[i] * x[mask] @ A_i.T) @ B_i.T


def sorted_segments(y, x, A, B, scale, adapter_ids):
    # As SGMV does it: sort, multiply each segment, and put it back through the same order.
    order = np.argsort(adapter_ids, kind="stable")
    for i in np.unique(adapter_ids[adapter_ids >= 0]):
        start, stop = np.searchsorted(adapter_ids[order], [i, i + 1])
        rows = order[start:stop]
        np.add.at(y, rows, scale[i] * (x[rows] @ A[i].T @ B[i].T))


def where_it_belongs(y, x, A, B, scale, adapter_ids):
    # All adapters for all tokens, and one of them chosen: right, and wasteful.
    with np.errstate(invalid="ignore"):
        for i in range(len(A)):
            patch = scale[i] * (x @ A[i].T @ B[i].T)
            y[:] = np.where((adapter_ids == i)[:, None], y + patch, y)


MUST_PASS = [token_by_token, boolean_masks, sorted_segments, where_it_belongs]
