import numpy as np


def shard(A, B, split, ranks):
    if split == "out":
        return [(A, part) for part in np.split(B, ranks, axis=0)]
    return [(part, B) for part in np.split(A, ranks, axis=1)]
