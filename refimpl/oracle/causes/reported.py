"""The steps of an engine that tells them (Computed, engines/interface.py): what steps.py works out otherwise."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from ...engines.interface import Computed
from .schedule import Batch, Rows, Step
from .slots import Slots


def reported_steps(batches: Sequence[Batch]) -> list[list[Step]]:
    """Return the steps of each batch of one engine; what is in its slots goes on from one to the next. What is computed
    again, of a request that was preempted, is only where it was computed last; what nobody asked for is left out."""
    count = 1 + max((of.slot for batch in batches for one in batch if one.adapters for of in one.computed), default=-1)
    slots = Slots(count)
    return [list(_steps_of(batch, slots)) for batch in batches]


def _steps_of(batch: Batch, slots: Slots) -> Iterator[Step]:
    parts = sorted(
        (one.step, one.row, i, one)
        for i, request in enumerate(batch)
        for one in computed_last(request.computed, request.tokens)
    )
    places, lost, begun = [-1] * len(batch), set[int](), set[int]()
    for _, group in groupby(parts, key=lambda part: part[0]):
        some = [(i, one) for _, _, i, one in group]
        loaded = _move(batch, some, slots, places, lost)
        now = tuple(slots.keys), tuple(slots.history)
        moves = tuple(slots.moves[key] for key in slots.keys)
        for i, one in some:
            if i not in begun and one.first:
                yield Step((Rows(i, 0, one.first, False),), *now, (), moves, tuple(places), True)
            begun.add(i)
        rows = tuple(Rows(i, one.first, one.tokens, one.first >= batch[i].prompt) for i, one in some)
        yield Step(rows, *now, tuple(loaded), moves, tuple(places))


def _move(
    batch: Batch, some: Sequence[tuple[int, Computed]], slots: Slots, places: list[int], lost: set[int]
) -> list[str]:
    """Put the adapters of a step where they are told to be; return those that moved in. lost: requests that go on in a
    slot that was given to another adapter beside them; whoever was not computed then has its slot back."""
    in_slots = [(i, one.slot, batch[i].adapters[0][0]) for i, one in some if batch[i].adapters and one.slot >= 0]
    loaded = [(slot, key) for i, slot, key in in_slots if places[i] != slot and slots.put(key, slot)]
    lost |= {i for i, slot, key in in_slots if places[i] == slot and slot in dict(loaded) and slots.keys[slot] != key}
    loaded += [(slot, key) for i, slot, key in in_slots if places[i] == slot and i not in lost and slots.put(key, slot)]
    for i, slot, _ in in_slots:
        places[i] = slot
    return [key for _, key in loaded]


def computed_last(steps: Sequence[Computed], end: int) -> list[Computed]:
    """Return the steps of a request without tokens that are computed again later on, and without those from `end`
    on."""
    kept = list[Computed]()
    for one in reversed(steps):
        if one.first < end:
            kept.append(one._replace(tokens=min(one.tokens, end - one.first)))
            end = one.first
    return kept[::-1]
