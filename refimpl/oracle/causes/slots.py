"""Which adapter is in which slot on the device, from step to step and from batch to batch.

A free slot, or that of the adapter that was used least recently (vLLM's LRU cache, lora/model_manager.py).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Occupants(NamedTuple):
    """Who was in the slot of an adapter."""

    former: tuple[str, ...] = ()  # before it, the latest first
    ever: tuple[str, ...] = ()  # in the order in which they first came, itself among them


@dataclass(eq=False)
class Slots:
    """Where adapters are on the device, from batch to batch."""

    count: int
    keys: list[str | None] = field(default_factory=list)
    former: list[tuple[str, ...]] = field(default_factory=list)  # which ones were there before, the latest first
    ever: list[tuple[str, ...]] = field(default_factory=list)  # all that were there, in the order in which they came
    order: list[int] = field(default_factory=list)  # the one that was used least recently first
    moves: Counter[str | None] = field(default_factory=Counter)  # of each adapter, how often it moved in

    def __post_init__(self) -> None:
        self.keys, self.former, self.ever = [None] * self.count, [()] * self.count, [()] * self.count
        self.order = list(range(self.count))

    def move_in(self, key: str, in_use: set[str]) -> bool:
        """Use an adapter: give it a slot of none in use, unless it has one. Did it move in?"""
        if key in self.keys:
            slot = self.keys.index(key)
        else:
            slot = next((one for one in self.order if self.keys[one] not in in_use), self.order[0])
        self._touch(slot)
        return self.put(key, slot)

    def put(self, key: str, slot: int) -> bool:
        """Have an adapter in this slot, and in no other one. Did it move in?"""
        if self.keys[slot] == key:
            return False
        for place in (slot, *(n for n, other in enumerate(self.keys) if other == key)):
            former = self.keys[place]
            if former is not None:
                self.former[place] = (former, *(one for one in self.former[place] if one != former))
            self.keys[place] = None
        self.keys[slot] = key
        self.ever[slot] = tuple(dict.fromkeys([*self.ever[slot], key]))
        self.moves[key] += 1
        return True

    def occupants_of(self, key: str) -> Occupants:
        """Return who was in the slot of an adapter that is in one."""
        slot = self.keys.index(key)
        return Occupants(tuple(one for one in self.former[slot] if one != key), self.ever[slot])

    def numbers_of(self, keys: Iterable[str]) -> list[int]:
        """Return their slots; of those without one nothing."""
        return [self.keys.index(key) for key in keys if key in self.keys]

    def touch(self, key: str) -> None:
        """Take an adapter for the one that was used last, if it has a slot."""
        if key in self.keys:
            self._touch(self.keys.index(key))

    def _touch(self, slot: int) -> None:
        self.order.remove(slot)
        self.order.append(slot)
