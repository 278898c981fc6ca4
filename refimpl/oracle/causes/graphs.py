"""Of whose adapter decode rows are if an engine reads that from what was true once: when a graph was captured, or
before a request ended.

    graphs = {}                                   # a CUDA graph for each size, captured at its first step
    slots = graphs.setdefault(len(rows), slots)   # the slots of that step, in every later one
"""

import itertools

import numpy as np

from ...arrays import Array
from .line import Line
from .schedule import Schedule, compacted_places

SIZES = {
    "as many requests": (False, False),
    "as many requests, padded to a power of two": (False, True),
    "as many requests, without prompt tokens": (True, False),
    "as many requests, padded to a power of two, without prompt tokens": (True, True),
}
WHAT = ("the request", "the adapter in the slot of the request")  # what was captured
OF_LIST = "the request that had its place among decode rows before others ended"
COMPACTED = "the request that ended at the place of the batch that it has since"
Rows = list[tuple[int, int]]  # of each decode row: what its adapter is called (Line.codes), and its slot, -1: none


def captured(line: Line, number: int, schedule: Schedule) -> dict[str, Array]:
    """Return for each name what adapter it means at each row of a batch: at rows that are no decode steps its own."""
    codes, graphs = line.codes, [dict[int, Rows]() for _ in SIZES]
    results: dict[str, list[int]] = {
        f"{what} at its place in the first decode step of {size}": [] for size, what in itertools.product(SIZES, WHAT)
    }
    of_list, compacted, in_slots_of = list[int](), list[int](), list[int]()
    for n, in_order in enumerate(line.played(number, schedule)):
        requests, entries = line.batches[n], list[int]()
        called = [codes[one.called] for one in requests]
        places, of_place, done = list[int](), list[tuple[int, int]](), [0] * len(requests)
        for step in in_order:
            decodes = [one.request for one in step.rows if one.is_decode]
            prompts = [called[one.request] for one in step.rows if not one.is_decode for _ in range(one.length)]
            now = [(called[i], requests[i].slot_in(step.slots)) for i in decodes]
            for (alone, padded), of, words in zip(SIZES.values(), graphs, SIZES, strict=True):
                size = 1 << (len(now) - 1).bit_length() if padded and now else len(now)
                then = of.setdefault(size, now) if now and not (alone and prompts) else now
                if n == number:
                    then = (then + [(0, -1)] * len(now))[: len(now)]
                    in_slots = [codes[step.slots[slot]] if 0 <= slot < len(step.slots) else 0 for _, slot in then]
                    for what, some in zip(WHAT, ([one for one, _ in then], in_slots), strict=True):
                        results[f"{what} at its place in the first decode step of {words}"] += some + prompts
            entries += [i for i in decodes if i not in entries]
            if n == number:
                of_list += [called[entries[place]] for place in range(len(decodes))] + prompts
            entries = entries[: len(decodes)]
            for one in step.rows:
                if one.request not in places:
                    places.append(one.request)
                    slot = step.places[one.request] if step.places else -1
                    of_place = [*of_place[: len(places) - 1], (called[one.request], slot)]
                done[one.request] += one.length
                if n == number:
                    key, slot = of_place[places.index(one.request)]
                    compacted += [key] * one.length
                    in_slots_of += [codes[step.slots[slot]] if slot >= 0 else 0] * one.length
            places = compacted_places(places, [n >= one.tokens for n, one in zip(done, requests, strict=True)])
    lists = {OF_LIST: of_list, COMPACTED: compacted, f"the adapter in the slot of {COMPACTED}": in_slots_of}
    return {words: np.array(some) for words, some in (results | lists).items()}
