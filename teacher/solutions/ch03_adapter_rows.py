import numpy as np


def adapter_rows(per_request, lengths):
    k = max(1, max(len(slots) for slots in per_request))
    rows = np.full((len(per_request), k), -1)
    for row, slots in zip(rows, per_request, strict=True):
        row[: len(slots)] = slots
    return rows.repeat(lengths, axis=0)
