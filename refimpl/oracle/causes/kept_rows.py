"""Of whose adapter a row is if an engine keeps what it should write anew: the adapters of the rows of a step for the
next one, or in a table of the requests that run, a place for each, those of requests that have one.

    slots[place] = request.slot      # left out for the base: whoever stood there last is in the table still
"""

from collections.abc import Iterator

import numpy as np

from ...arrays import Array
from .line import Line
from .schedule import Schedule
from .steps import moved_places

LAST = "the last request with an adapter that stood at its place among those that run"
NAMES = (LAST, f"the adapter in the slot of {LAST}")
BEFORE = ("the row at its place in the step before", "the decode row at its place in the step before")
NAMES_BEFORE = (*BEFORE, *(f"the adapter in the slot of {one}" for one in BEFORE))


def kept_rows(line: Line, schedule: Schedule) -> Iterator[dict[str, Array]]:
    """Yield for each batch what adapter each name means at each of its rows: at those of adapters their own. A request
    begins at the first free place; where one ends, the last one moves there, with what the table has for it."""
    codes, table = line.codes, dict[int, tuple[int, int]]()  # place -> what its adapter is called, and its slot
    for n, requests in enumerate(line.batches):
        places, done = list[int](), [0] * len(requests)
        of_rows, in_slots = list[int](), list[int]()
        for step in line.steps(n, schedule):
            for one in step.rows:
                if one.request not in places:
                    places.append(one.request)
                place, called = places.index(one.request), codes[requests[one.request].called]
                if called:
                    table[place] = called, requests[one.request].slot_in(step.slots)
                kept, slot = table.get(place, (0, -1))
                of_rows += [kept] * one.length
                in_slots += [called or (codes[step.slots[slot]] if slot >= 0 else 0)] * one.length
                done[one.request] += one.length
            ends = [count >= one.tokens for count, one in zip(done, requests, strict=True)]
            places, moves = moved_places(places, ends)
            for to, since in moves:
                table[to] = table.get(since, (0, -1))
        yield dict(zip(NAMES, map(np.array, (of_rows, in_slots)), strict=True))


def rows_before(line: Line, schedule: Schedule) -> Iterator[dict[str, Array]]:
    """Yield for each batch what adapter each name means at each of its rows: at those behind as many as the step before
    had, and at prompts where decode rows are meant, their own."""
    codes, before = line.codes, [list[tuple[int, int]](), list[tuple[int, int]]()]  # of all rows, of decode rows
    for n, requests in enumerate(line.batches):
        results: dict[str, list[int]] = {name: [] for name in NAMES_BEFORE}
        for step in line.steps(n, schedule):
            now = [
                (codes[requests[one.request].called], requests[one.request].slot_in(step.slots), one)
                for one in step.rows
            ]
            rows = [(code, slot, one.is_decode) for code, slot, one in now for _ in range(one.length)]
            for decode, then in enumerate(before):
                rest = iter(then)
                of_rows = [
                    (code, slot) if step.is_cached or decode > is_decode else next(rest, (code, slot))
                    for code, slot, is_decode in rows
                ]
                results[NAMES_BEFORE[decode]] += [code for code, _ in of_rows]
                in_slots = [codes[step.slots[slot]] if slot >= 0 else 0 for _, slot in of_rows]
                results[NAMES_BEFORE[2 + decode]] += in_slots
            if not step.is_cached:
                before = [[row[:2] for row in rows], [row[:2] for row in rows if row[2]]]
        yield {name: np.array(some) for name, some in results.items()}
