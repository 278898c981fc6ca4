"""Which adapter is in which slot on the device, from step to step and from batch to batch.

A free slot, or that of the adapter that was used least recently (vLLM's LRU cache, lora/model_manager.py).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(eq=False)
class Slots:
    """Where adapters are on the device, from batch to batch."""

    count: int
    keys: list[str | None] = field(default_factory=list)
    history: list[tuple[str, ...]] = field(default_factory=list)  # all that moved into each, one after another
    order: list[int] = field(default_factory=list)  # the one that was used least recently first
    moves: Counter[str | None] = field(default_factory=Counter)  # of each adapter, how often it moved in

    def __post_init__(self) -> None:
        self.keys, self.history = [None] * self.count, [()] * self.count
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
        self.keys = [None if other == key else other for other in self.keys]
        self.keys[slot] = key
        self.history[slot] = (*self.history[slot], key)
        self.moves[key] += 1
        return True

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
