"""Right in another way: these must pass."""

import numpy as np


def loop(last_used, ref_counts):
    victim = None
    for slot, time in last_used.items():
        if ref_counts.get(slot, 0) == 0 and (victim is None or time < last_used[victim]):
            victim = slot
    return victim


def sorted_by_time(last_used, ref_counts):
    for slot, _ in sorted(last_used.items(), key=lambda item: item[1]):
        if not ref_counts.get(slot):
            return slot


def with_numpy(last_used, ref_counts):
    slots = np.array([slot for slot in last_used if not ref_counts.get(slot)], int)
    return slots[np.argmin([last_used[slot] for slot in slots])] if len(slots) else None  # an np.int64


MUST_PASS = [loop, sorted_by_time, with_numpy]
