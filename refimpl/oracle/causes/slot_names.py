"""Whose adapter it is at each row that a slot holds: one by its number, the one beside, the one before an eviction."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...arrays import Array
from .line import Line
from .schedule import Batch, Schedule, Step

TOGETHER = "the {} of the adapters that moved into slots in the same step as its own"
MOST_SLOTS = 4  # whose numbers are names
COUNTED = (
    "is as many-th to come in its step as its own is slot by slot",
    "is as many-th slot by slot in its step as its own is to come",
)


def slots_in_steps(requests: Batch, in_order: Sequence[Step]) -> Array:
    """Return the slot of each request in each step, -1: none. Where slots are not known adapters have them as they
    come."""
    keys = list(dict.fromkeys(one.adapters for one in requests if one.adapters))
    as_they_come = [keys.index(one.adapters) if one.adapters else -1 for one in requests]
    return np.array(
        [[one.slot_in(step.slots) for one in requests] if step.slots else as_they_come for step in in_order]
    )


def out_of_order(requests: Batch, in_order: Sequence[Step], codes: Mapping[str | None, int]) -> dict[str, Array]:
    """Return for each name what an adapter is taken for at each row, if the adapters of a step are counted as they come
    in one place and slot by slot in another."""
    results: dict[str, list[int]] = {f"the adapter that {one}": [] for one in COUNTED}
    for step in in_order:
        slots = {i: requests[i].slot_in(step.slots) for i in dict.fromkeys(one.request for one in step.rows)}
        as_they_come = list(dict.fromkeys(requests[i].called for i in slots if requests[i].adapters))
        of_slot = {requests[i].called: slot for i, slot in slots.items()}
        in_slots = sorted(as_they_come, key=lambda called: of_slot[called])
        for here, other, of in zip((in_slots, as_they_come), (as_they_come, in_slots), results.values(), strict=True):
            for one in step.rows:
                called = requests[one.request].called
                of += [codes[other[here.index(called)] if called is not None else None]] * one.length
    return {words: np.array(some) for words, some in results.items()}


def in_slots(line: Line, number: int, in_order: Sequence[Step], step: Array, owner: Array) -> dict[str, Array]:
    """Return for each name which adapter of the slots it means at each row, 0: none; where there is no such slot its
    own, which is no mistake. step, owner: of each row."""
    codes, requests, count = line.codes, line.batches[number], len(in_order[0].slots)
    names = [*(f"the adapter in slot {n}" for n in range(MOST_SLOTS)), "the adapter in the last slot"]
    names += [f"the adapter in the slot {which} its own" for which in ("before", "after")]
    names += ["the adapter that was in its slot before", "the adapter that is now in the slot that its own had"]
    names += ["the last adapter that moved into its slot for the first time"]
    called = np.array([codes[one.called] for one in requests])[owner]
    if not count:
        return dict.fromkeys(names, called)
    now = np.array([[codes[key] for key in one.slots] for one in in_order])
    first = np.array([[codes[[*dict.fromkeys(of)][-1]] if of else 0 for of in one.history] for one in in_order])
    former = np.array([[codes[of[-2]] if len(of) > 1 else 0 for of in one.history] for one in in_order])
    slots = np.array([[one.slot_in(some.slots) for one in requests] for some in in_order])[step, owner]
    of_row = [now[step, n] if n < count else called for n in range(MOST_SLOTS)] + [now[step, -1]]
    beside = [now[step, (slots - 1) % count], now[step, (slots + 1) % count], former[step, slots]]
    of_row += [np.where(slots >= 0, some, 0) for some in beside]
    places = np.array([one.places for one in in_order])[step, owner]
    of_row += [np.where(places >= 0, some[step, places], 0) for some in (now, first)]
    return dict(zip(names, of_row, strict=True))


def loaded_together(line: Line, schedule: Schedule) -> Iterator[dict[str, Array]]:
    """Yield for each batch which adapter each name means at each of its rows, of those that came at once: one staging
    buffer for several has the weights of one of them. At rows whose adapter came alone, or has no slot, its own."""
    codes, ends = line.codes, dict[str, tuple[str, str]]()  # of each adapter in a slot: the first and last beside it
    for n, requests in enumerate(line.batches):
        results = {TOGETHER.format(which): list[int]() for which in ("first", "last")}
        for step in line.steps(n, schedule):
            ends |= dict.fromkeys(step.loaded, (step.loaded[0], step.loaded[-1]) if step.loaded else ("", ""))
            for one in step.rows:
                request = requests[one.request]
                key = request.adapters[0][0] if len(request.adapters) == 1 else ""
                for some, end in zip(results.values(), ends.get(key, (request.called, request.called)), strict=True):
                    some += [codes[end]] * one.length
        yield {words: np.array(some, int) for words, some in results.items()}
