"""Right in another way: these must pass."""

import numpy as np


def group_by_group(x, q, steps, A, B, scale):
    # The sums of each group first, then its step: as a kernel does it, which never forms W.
    groups = steps.shape[1]
    sums = np.einsum("tgi,ogi->tog", x.reshape(len(x), groups, -1), q.reshape(len(q), groups, -1))
    return (sums * steps).sum(axis=2) + scale * (x @ A.T) @ B.T


def number_by_number(x, q, steps, A, B, scale):
    def dot(numbers, others):
        return sum(float(one) * float(other) for one, other in zip(numbers, others, strict=True))

    y, size = [], q.shape[1] // steps.shape[1]
    for row in x:
        low = [dot(row, rank) for rank in A]
        weights = ([code * steps[j, i // size] for i, code in enumerate(codes.tolist())] for j, codes in enumerate(q))
        y.append([dot(row, of_output) + scale * dot(B[j], low) for j, of_output in enumerate(weights)])
    return y


def merged_in_float64(x, q, steps, A, B, scale):
    # Merging does no harm where the sum is not rounded: it costs a matrix as large as W for each adapter.
    W = q.reshape(*steps.shape, -1) * steps[:, :, None]
    return x @ (W.reshape(q.shape) + scale * B @ A).T


MUST_PASS = [group_by_group, number_by_number, merged_in_float64]
