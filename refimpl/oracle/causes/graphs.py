"""Of whose adapter decode rows are if an engine reads that from what was true once: when a graph was captured, or
before a request ended.

    graphs = {}                                   # a CUDA graph for each size, captured at its first step
    slots = graphs.setdefault(len(rows), slots)   # the slots of that step, in every later one
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ...arrays import Array
from .line import Line
from .schedule import Batch, Schedule, Step
from .steps import compacted_places

PADDED: dict[str, Callable[[int], int]] = {
    "": lambda n: n,
    ", padded to a power of two": lambda n: 1 << (n - 1).bit_length(),
    ", padded to a power of two, 2 at least": lambda n: max(1 << (n - 1).bit_length(), 2),
    ", padded to a multiple of 4": lambda n: -(-n // 4),
    ", padded to a multiple of 8": lambda n: -(-n // 8),
}
# What is captured stays so, or for one batch, or as long as the size is the same.
KEPT = {
    "first": "the first decode step of as many requests",
    "of its batch": "the first decode step of as many requests of its batch",
    "since": "the decode step since which as many requests decode",
}
SIZES = list(itertools.product(KEPT, PADDED, ("", ", without prompt tokens")))
WHAT = ("the request", "the adapter in the slot of the request")  # what was captured
OF_LIST = "the request that had its place among decode rows before others ended"
CUT = "the request that had its place in the batch before others ended"  # names[: len(running)], not a selection
COMPACTED = "the request that ended at the place of the batch that it has since"
Graph = dict[
    int, list[tuple[int, int]]
]  # size -> of each decode row: what its adapter is called (Line.codes), and its slot, -1: none


def captured(line: Line, schedule: Schedule) -> Iterator[dict[str, Array]]:
    """Yield for each batch what adapter each name means at each of its rows: at rows that are no decode steps its
    own."""
    graphs: list[Graph] = [{} for _ in SIZES]
    for n, requests in enumerate(line.batches):
        in_order = line.steps(n, schedule)
        graphs = [{} if kept == "of its batch" else of for of, (kept, *_) in zip(graphs, SIZES, strict=True)]
        yield _by_size(requests, in_order, line.codes, graphs) | _by_list(requests, in_order, line.codes)


def _by_size(
    requests: Batch, in_order: Sequence[Step], codes: Mapping[str | None, int], graphs: Sequence[Graph]
) -> dict[str, Array]:
    """Return the names by steps of the same size. graphs: of each kind what was captured; what is new is added."""
    called = [codes[one.called] for one in requests]
    results = [(list[Array](), list[Array]()) for _ in SIZES]
    for step in in_order:
        decodes = [one.request for one in step.rows if one.is_decode]
        has_prompts = len(decodes) < len(step.rows)
        now = [(called[i], requests[i].slot_in(step.slots)) for i in decodes]
        at_rows = dict[int, tuple[Array, Array]]()  # of each list, which many kinds have in common
        for (kept, padded, alone), graph, (rows, in_slots) in zip(SIZES, graphs, results, strict=True):
            size, then = PADDED[padded](len(now)), now
            if now and not (alone and has_prompts):
                if kept == "since" and size not in graph:
                    graph.clear()
                then = graph.setdefault(size, now)
            if id(then) not in at_rows:
                some = (then + [(0, -1)] * len(now))[: len(now)]
                in_them = [codes[step.slots[slot]] if 0 <= slot < len(step.slots) else code for code, slot in some]
                of_requests = _at_rows(step, called, [code for code, _ in some])
                at_rows[id(then)] = np.array(of_requests), np.array(_at_rows(step, called, in_them))
            rows.append(at_rows[id(then)][0])
            in_slots.append(at_rows[id(then)][1])
    return {
        f"{what} at its place in {KEPT[kept]}{padded}{alone}": np.concatenate([np.zeros(0, int), *some])
        for (kept, padded, alone), both in zip(SIZES, results, strict=True)
        for what, some in zip(WHAT, both, strict=True)
    }


def _by_list(requests: Batch, in_order: Sequence[Step], codes: Mapping[str | None, int]) -> dict[str, Array]:
    """Return the names by a list of a batch's requests that is not kept as they end."""
    called = [codes[one.called] for one in requests]
    of_list, cut, compacted, in_slots_of = list[int](), list[int](), list[int](), list[int]()
    entries, places, of_place = list[int](), list[int](), list[tuple[int, int]]()
    running, listed, done = list[int](), list[int](), [0] * len(requests)
    for step in in_order:
        decodes = [one.request for one in step.rows if one.is_decode]
        entries += [i for i in decodes if i not in entries]
        of_list += _at_rows(step, called, [called[entries[place]] for place in range(len(decodes))])
        entries = entries if step.is_cached else entries[: len(decodes)]
        for one in step.rows:
            if one.request not in running:
                running.append(one.request)
                listed.append(called[one.request])
            cut += [listed[running.index(one.request)]] * one.length
            if one.request not in places:
                places.append(one.request)
                slot = step.places[one.request] if step.places else -1
                of_place = [*of_place[: len(places) - 1], (called[one.request], slot)]
            done[one.request] += one.length
            key, slot = of_place[places.index(one.request)]
            compacted += [key] * one.length
            in_slots_of += [codes[step.slots[slot]] if slot >= 0 else 0] * one.length
        ends = [n >= one.tokens for n, one in zip(done, requests, strict=True)]
        running = [i for i in running if not ends[i]]
        places, listed = compacted_places(places, ends), listed[: len(running)]
    named = {OF_LIST: of_list, CUT: cut, COMPACTED: compacted, f"the adapter in the slot of {COMPACTED}": in_slots_of}
    return {words: np.array(some) for words, some in named.items()}


def _at_rows(step: Step, called: Sequence[int], of_decodes: Sequence[int]) -> list[int]:
    """Return what stands at each row of a step: these at its decode rows, and at those of prompts their own."""
    rest = iter(of_decodes)
    return [next(rest) if one.is_decode else called[one.request] for one in step.rows for _ in range(one.length)]
