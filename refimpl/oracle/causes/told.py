"""The steps of an engine that tells them (Computed, engines/interface.py): what steps.py works out otherwise."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from ...engines.interface import Computed
from .schedule import Batch, Rows, Step


def told_steps(batches: Sequence[Batch]) -> list[list[Step]]:
    """Return the steps of each batch of one engine; what is in its slots goes on from one to the next. What is computed
    again, of a request that was preempted, is only where it was computed last."""
    count = 1 + max((of.slot for batch in batches for one in batch if one.adapters for of in one.computed), default=-1)
    slots = _Slots(count)
    return [list(_steps_of(batch, slots)) for batch in batches]


class _Slots:
    """What was seen to be in each slot: it is there until something else is."""

    def __init__(self, count: int) -> None:
        self.keys: list[str | None] = [None] * count
        self.former: list[tuple[str, ...]] = [()] * count
        self.moves: Counter[str | None] = Counter()

    def see(self, key: str, slot: int) -> bool:
        """Note where an adapter is. Has it moved in?"""
        if self.keys[slot] == key:
            return False
        for place in (slot, *(n for n, other in enumerate(self.keys) if other == key)):
            if (other := self.keys[place]) is not None:
                self.former[place] = (other, *(one for one in self.former[place] if one != other))
            self.keys[place] = None
        self.keys[slot] = key
        self.moves[key] += 1
        return True


def _steps_of(batch: Batch, slots: _Slots) -> Iterator[Step]:
    parts = sorted((one.step, one.row, i, one) for i, request in enumerate(batch) for one in _last(request.computed))
    places, begun = [-1] * len(batch), set[int]()
    for _, group in groupby(parts, key=lambda part: part[0]):
        rows, cached, loaded = list[Rows](), list[Rows](), list[str]()
        for _, _, i, one in group:
            key = batch[i].adapters[0][0] if batch[i].adapters else None
            if key is not None and one.slot >= 0:
                loaded += [key] * slots.see(key, one.slot)
                places[i] = one.slot if places[i] < 0 else places[i]
            cached += [Rows(i, 0, one.first, False)] * (i not in begun and one.first > 0)
            begun.add(i)
            rows.append(Rows(i, one.first, one.tokens, one.first >= batch[i].prompt))
        now = tuple(slots.keys), tuple(slots.former)
        moves = tuple(slots.moves[key] for key in slots.keys)
        for found in cached:
            yield Step((found,), *now, (), moves, tuple(places), True)
        yield Step(tuple(rows), *now, tuple(loaded), moves, tuple(places))


def _last(steps: Sequence[Computed]) -> list[Computed]:
    """Return them without tokens that are computed again later on."""
    kept, end = list[Computed](), None
    for one in reversed(steps):
        tokens = one.tokens if end is None else min(one.tokens, end - one.first)
        if tokens > 0:
            kept.append(one._replace(tokens=tokens))
        end = one.first if end is None else min(end, one.first)
    return kept[::-1]
