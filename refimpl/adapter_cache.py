"""Which adapters are loaded: a bounded set of slots, least recently used out first, never one that is in use."""

import itertools
from collections.abc import Iterable, Sequence

from .adapter import Adapter
from .adapter_slots import AdapterSlots, BoundAdapter
from .arrays import Precision
from .digest import digest
from .errors import CacheFull, LoracleError
from .ops import Ops
from .weights import Base


class AdapterCache:
    """Adapter -> its slot. An adapter is known by the object: a name or a path can be used again, and a folder can be
    loaded again with other weights, without ever meeting what was there before.

    With capacity None every adapter that came stays; `unload` lets one go. Its memory is its own: an adapter takes no
    KV blocks, and nothing is loaded before its request is admitted (unified_pool.py does both)."""

    patience: int | None = 0  # how many requests may overtake one whose adapter is not loaded (None: any number)

    def __init__(self, model: Base, p: Precision, ops: Ops, capacity: int | None = None) -> None:
        self.slots = AdapterSlots(model, p, ops.dora_gain)
        self.capacity = capacity
        self.ref_counts: dict[int, int] = {}  # slot -> how many running requests use it
        self._slot_of: dict[Adapter, int] = {}
        self._adapter_at: dict[int, Adapter] = {}  # the same, the other way round
        self._emptied: set[int] = set()  # slots below the highest that was ever filled, which hold nothing now
        self._last_used: dict[int, int] = {}
        self._digests: dict[int, bytes] = {}
        self.loads = 0  # adapters that were brought into a slot so far
        self.misses = 0  # of these, those that a request had to wait for: here all of them
        self.evicted: list[str] = []  # names of those that lost their slots, since the scheduler emptied the list
        self._model, self._ops, self._clock = model, ops, itertools.count()

    def acquire(self, adapter: Adapter) -> int:
        """The slot that holds this adapter, loaded if it was not; it stays until `release`. CacheFull if every slot is
        in use by others, before anything has changed."""
        slot = self._slot_of.get(adapter)
        if slot is None:
            bound = self._bind(adapter)
            slot = self._free_slot()
            self.slots.put(slot, self._ops.shard_adapter(bound))  # the digest is that of the whole
            self._assign(slot, adapter)
            self.misses += 1
        self.ref_counts[slot] = self.ref_counts.get(slot, 0) + 1
        self._touch(slot)
        return slot

    def acquire_all(self, adapters: Sequence[tuple[Adapter, float]]) -> list[tuple[int, float]] | None:
        """(slot, weight) of each, or None, with nothing kept, if they do not all fit now."""
        acquired: list[tuple[int, float]] = []
        try:
            for adapter, weight in adapters:
                acquired.append((self.acquire(adapter), weight))
        except CacheFull:
            for slot, _ in acquired:
                self.release(slot)
            return None
        return acquired

    def release(self, slot: int) -> None:
        """Count one user less of the slot. The adapter stays until its room is needed."""
        self.ref_counts[slot] -= 1
        if self.ref_counts[slot] == 0:
            del self.ref_counts[slot]
        self._touch(slot)

    def unload(self, adapter: Adapter) -> None:
        """Empty the slot of an adapter that nobody uses. LoracleError for one that is in use, or not here."""
        slot = self._slot_of.get(adapter)
        if slot is None:
            raise LoracleError(f"adapter {adapter.name} is not loaded")
        if self.ref_counts.get(slot):
            raise LoracleError(f"adapter {adapter.name} is in use by {self.ref_counts[slot]} running request(s)")
        self._evict(slot)
        self.slots.remove(slot)

    def digest(self, slot: int) -> bytes:
        """SHA-256 of what the slot's adapter changes, for prefix keys; computed once per load, when first asked for."""
        if slot not in self._digests:
            self._digests[slot] = digest(self._bind(self._adapter_at[slot]))
        return self._digests[slot]

    def prefetch(self, queue: Iterable[Adapter]) -> None:
        """Load what waiting requests will ask for, in their order. Here: nothing."""

    def blocks_for(self, adapters: Iterable[Adapter]) -> int:
        """How many KV blocks these adapters take. Here: none."""
        return 0

    @property
    def slot_of(self) -> dict[Adapter, int]:
        """The adapters in memory, in use or not, and where each one is."""
        return dict(self._slot_of)

    def __contains__(self, adapter: Adapter) -> bool:
        """Is the adapter in memory, in use or not?"""
        return adapter in self._slot_of

    def _bind(self, adapter: Adapter) -> BoundAdapter:
        return self._ops.bind_adapter(adapter, self._model.config, self._ops.adapter_scale)

    def _touch(self, slot: int) -> None:
        self._last_used[slot] = next(self._clock)

    def _free_slot(self) -> int:
        """The lowest slot that holds nothing, after an eviction if need be. It is taken by `_assign`, not here: what
        comes between may fail. Nothing in it grows with the number of slots, but for the policy's own look at them."""
        if self.capacity is not None and len(self._slot_of) >= self.capacity:
            slot = self._ops.select_victim(self._last_used, self.ref_counts)
            if slot is None:
                raise CacheFull(f"adapter cache: all {self.capacity} slots are in use by running requests")
            self._evict(slot)
        return min(self._emptied, default=len(self._slot_of))

    def _assign(self, slot: int, adapter: Adapter) -> None:
        """Note that an adapter is in a slot now."""
        self._slot_of[adapter], self._adapter_at[slot] = slot, adapter
        self._emptied.discard(slot)
        self._digests.pop(slot, None)
        self.loads += 1

    def _evict(self, slot: int) -> None:
        adapter = self._adapter_at.pop(slot)
        del self._slot_of[adapter]
        self._emptied.add(slot)
        self.evicted.append(adapter.name)
        self._last_used.pop(slot, None)
        self._digests.pop(slot, None)

    def __repr__(self) -> str:
        by_slot = sorted(self._slot_of.items(), key=lambda item: item[1])
        names = ", ".join(f"{slot}: {adapter.name}" for adapter, slot in by_slot)
        return f"AdapterCache({names or 'empty'}; {len(self.ref_counts)} in use, capacity {self.capacity})"
