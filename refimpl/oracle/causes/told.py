"""The steps of an engine that tells them (Computed, engines/interface.py): what steps.py works out otherwise."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from ...engines.interface import Computed
from .schedule import Batch, Rows, Step
from .slots import Slots


def told_steps(batches: Sequence[Batch]) -> list[list[Step]]:
    """Return the steps of each batch of one engine; what is in its slots goes on from one to the next. What is computed
    again, of a request that was preempted, is only where it was computed last; what nobody asked for is left out."""
    count = 1 + max((of.slot for batch in batches for one in batch if one.adapters for of in one.computed), default=-1)
    slots = Slots(count)
    return [list(_steps_of(batch, slots)) for batch in batches]


def _steps_of(batch: Batch, slots: Slots) -> Iterator[Step]:
    parts = sorted(
        (one.step, one.row, i, one)
        for i, request in enumerate(batch)
        for one in _last(request.computed, request.tokens)
    )
    places, begun = [-1] * len(batch), set[int]()
    for _, group in groupby(parts, key=lambda part: part[0]):
        rows, cached, loaded = list[Rows](), list[Rows](), list[str]()
        for _, _, i, one in group:
            key = batch[i].adapters[0][0] if batch[i].adapters else None
            if key is not None and one.slot >= 0:
                loaded += [key] * slots.put(key, one.slot)
                places[i] = one.slot if places[i] < 0 else places[i]
            cached += [Rows(i, 0, one.first, False)] * (i not in begun and one.first > 0)
            begun.add(i)
            rows.append(Rows(i, one.first, one.tokens, one.first >= batch[i].prompt))
        now = tuple(slots.keys), tuple(slots.history)
        moves = tuple(slots.moves[key] for key in slots.keys)
        for found in cached:
            yield Step((found,), *now, (), moves, tuple(places), True)
        yield Step(tuple(rows), *now, tuple(loaded), moves, tuple(places))


def _last(steps: Sequence[Computed], end: int) -> list[Computed]:
    """Return them without tokens that are computed again later on, and without those from `end` on."""
    kept = list[Computed]()
    for one in reversed(steps):
        if one.first < end:
            kept.append(one._replace(tokens=min(one.tokens, end - one.first)))
            end = one.first
    return kept[::-1]
