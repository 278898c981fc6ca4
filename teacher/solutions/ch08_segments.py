import numpy as np


def segments(adapter_ids, size):
    rows, starts = [], [0]
    for adapter in sorted(set(adapter_ids.tolist()) - {-1}):
        tokens = np.flatnonzero(adapter_ids == adapter).tolist()
        for first in range(0, len(tokens), size):
            rows += tokens[first : first + size]
            starts.append(len(rows))
    return rows, starts
