"""Of whose adapter decode rows are if an engine reads that from what was true once: when a graph was captured, or
before a request ended.

    graphs = {}                                   # a CUDA graph for each size, captured at its first step
    slots = graphs.setdefault(len(rows), slots)   # the slots of that step, in every later one
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from ...arrays import Array
from .line import Line
from .schedule import Schedule, Step
from .steps import compacted_places

PADDED: dict[str, Callable[[int], int]] = {
    "": lambda n: n,
    ", padded to a power of two": lambda n: 1 << (n - 1).bit_length(),
    ", padded to a multiple of 4": lambda n: -(-n // 4),
    ", padded to a multiple of 8": lambda n: -(-n // 8),
}
SIZES = list(itertools.product(PADDED, ("", ", without prompt tokens"), ("", ", of its batch")))
WHAT = ("the request", "the adapter in the slot of the request")  # what was captured
OF_LIST = "the request that had its place among decode rows before others ended"
CUT = "the request that had its place in the batch before others ended"  # names[: len(running)], not a selection
COMPACTED = "the request that ended at the place of the batch that it has since"
Rows = list[tuple[int, int]]  # of each decode row: what its adapter is called (Line.codes), and its slot, -1: none


def captured(line: Line, number: int, schedule: Schedule) -> dict[str, Array]:
    """Return for each name what adapter it means at each row of a batch: at rows that are no decode steps its own."""
    codes, graphs = line.codes, [dict[int, Rows]() for _ in SIZES]
    results: list[tuple[list[int], ...]] = [tuple([] for _ in WHAT) for _ in SIZES]
    of_list, cut, compacted, in_slots_of = list[int](), list[int](), list[int](), list[int]()
    for n, in_order in enumerate(line.played(number, schedule)):
        requests, entries = line.batches[n], list[int]()
        called = [codes[one.called] for one in requests]
        places, of_place, done = list[int](), list[tuple[int, int]](), [0] * len(requests)
        running, listed = list[int](), list[int]()
        graphs = [{} if of_batch else of for of, (_, _, of_batch) in zip(graphs, SIZES, strict=True)]
        for step in in_order:
            decodes = [one.request for one in step.rows if one.is_decode]
            has_prompts = len(decodes) < len(step.rows)
            now = [(called[i], requests[i].slot_in(step.slots)) for i in decodes]
            for (padded, alone, _), of, some in zip(SIZES, graphs, results, strict=True):
                then = of.setdefault(PADDED[padded](len(now)), now) if now and not (alone and has_prompts) else now
                if n == number:
                    then = (then + [(0, -1)] * len(now))[: len(now)]
                    some[0].extend(_at_rows(step, called, [one for one, _ in then]))
                    in_slots = [codes[step.slots[slot]] if 0 <= slot < len(step.slots) else 0 for _, slot in then]
                    some[1].extend(_at_rows(step, called, in_slots))
            entries += [i for i in decodes if i not in entries]
            if n == number:
                of_list += _at_rows(step, called, [called[entries[place]] for place in range(len(decodes))])
            entries = entries if step.is_cached else entries[: len(decodes)]
            for one in step.rows:
                if one.request not in running:
                    running.append(one.request)
                    listed.append(called[one.request])
                if n == number:
                    cut += [listed[running.index(one.request)]] * one.length
                if one.request not in places:
                    places.append(one.request)
                    slot = step.places[one.request] if step.places else -1
                    of_place = [*of_place[: len(places) - 1], (called[one.request], slot)]
                done[one.request] += one.length
                if n == number:
                    key, slot = of_place[places.index(one.request)]
                    compacted += [key] * one.length
                    in_slots_of += [codes[step.slots[slot]] if slot >= 0 else 0] * one.length
            ends = [n >= one.tokens for n, one in zip(done, requests, strict=True)]
            running = [i for i in running if not ends[i]]
            places, listed = compacted_places(places, ends), listed[: len(running)]
    named = dict[str, list[int]]()
    for size, of_size in zip(SIZES, results, strict=True):
        words = (f"{what} at its place in the first decode step of as many requests{''.join(size)}" for what in WHAT)
        named |= dict(zip(words, of_size, strict=True))
    named |= {OF_LIST: of_list, CUT: cut, COMPACTED: compacted, f"the adapter in the slot of {COMPACTED}": in_slots_of}
    return {words: np.array(some) for words, some in named.items()}


def _at_rows(step: Step, called: Sequence[int], of_decodes: Sequence[int]) -> list[int]:
    """Return what stands at each row of a step: these at its decode rows, and at those of prompts their own."""
    rest = iter(of_decodes)
    return [next(rest) if one.is_decode else called[one.request] for one in step.rows for _ in range(one.length)]
