"""Right in another way: these must pass."""

import numpy as np


def with_numpy(adapter_ids, size):
    rows = np.argsort(adapter_ids, kind="stable")[np.count_nonzero(adapter_ids < 0) :]
    counts = np.unique(adapter_ids[rows], return_counts=True)[1]
    parts = [min(size, count - first) for count in counts for first in range(0, count, size)]
    return rows, np.cumsum([0, *parts])


def one_pass_over_the_sorted(adapter_ids, size):
    rows = sorted((t for t in range(len(adapter_ids)) if adapter_ids[t] >= 0), key=lambda t: adapter_ids[t])
    starts = [0]
    for i in range(1, len(rows)):
        if adapter_ids[rows[i]] != adapter_ids[rows[i - 1]] or i - starts[-1] == size:
            starts.append(i)
    return rows, [*starts, len(rows)] if rows else [0]


def short_segment_first(adapter_ids, size):
    rows, starts = [], [0]
    for adapter in np.unique(adapter_ids[adapter_ids >= 0]):
        rows += np.flatnonzero(adapter_ids == adapter).tolist()
        count = len(rows) - starts[-1]
        starts += range(starts[-1] + (count % size or size), len(rows) + 1, size)
    return tuple(rows), tuple(starts)


MUST_PASS = [with_numpy, one_pass_over_the_sorted, short_segment_first]
