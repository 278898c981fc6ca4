"""One pool for keys, values and adapters: each takes blocks as it needs them, and the least recently used gives way.

    separate   [ KV blocks          | cached prefixes ]   [ slot 0 | slot 1 | slot 2 | slot 3 ]
    unified    [ KV | pirate | KV | robot . . . | cached prefixes | bard (idle) | free        ]

S-LoRA calls it unified paging (Sheng et al. 2023, section 5): many small adapters or many long requests, whichever is
there. Separate pools (KVCache and AdapterCache) stay the simple form, and what a request gets is the same from both.

    disk --load_adapter--> Adapter --bind, round--> host tier --copy, when a request or the queue asks--> blocks
                                                        ^------------------ evicted: nothing to copy back ----'
"""

from collections.abc import Iterable, Mapping, Sequence

from .adapter import Adapter
from .adapter_cache import AdapterCache
from .arrays import Precision
from .errors import CacheFull, LoracleError
from .kv_cache import KVCache
from .ops import Ops
from .paged_slots import PackedAdapter, PagedSlots
from .weights import Model

# How many requests may overtake one whose adapter is not in the pool, before all wait for it (asked once a step).
# More: the adapters that are there serve more of the queue before one is exchanged; who needs another waits longer.
PATIENCE = 64


class HostTier:
    """Adapters bound to the model, in the memory of the host, ready to be copied: at most `capacity` of them."""

    def __init__(self, slots: PagedSlots, ops: Ops, capacity: int | None) -> None:
        self.capacity = capacity
        self._slots, self._ops = slots, ops
        self._packed: dict[Adapter, PackedAdapter] = {}  # the least recently used one first

    def __getitem__(self, adapter: Adapter) -> PackedAdapter:
        packed = self._packed.pop(adapter, None)
        if packed is None:
            ops = self._ops
            packed = self._slots.packed(ops.bind_adapter(adapter, self._slots.model.config, ops.adapter_scale))
        self._packed[adapter] = packed
        if self.capacity is not None and len(self._packed) > self.capacity:
            del self._packed[next(iter(self._packed))]
        return packed

    def forget(self, adapter: Adapter) -> None:
        """Drop an adapter's copy, if there is one."""
        self._packed.pop(adapter, None)

    def __len__(self) -> int:
        return len(self._packed)

    @property
    def nbytes(self) -> int:
        """The host's memory for all of them."""
        return sum(packed.numbers.nbytes for packed in self._packed.values())


class UnifiedPool:
    """A KV cache and an adapter cache that share their blocks: Engine(model, pool=UnifiedPool, num_blocks=...).

    num_blocks counts the blocks for both. capacity bounds the adapters in them (None: as many as fit), host_capacity
    those in the host tier, and patience how many requests may overtake one whose adapter is not in the pool.

    LoracleError for one rank's part of a model, and for layers of different head_dim."""

    def __init__(
        self,
        model: Model,
        p: Precision,
        ops: Ops,
        num_blocks: int = 512,
        block_size: int = 16,
        capacity: int | None = None,
        host_capacity: int | None = None,
        patience: int | None = PATIENCE,
    ) -> None:
        if model.config.unsharded is not model.config:  # the ranks would no longer schedule the same
            raise LoracleError(
                "a unified pool is for one rank: an adapter's parts take other numbers of blocks on each"
            )
        if not model.config.uniform_kv:
            raise LoracleError(
                "a unified pool needs layers that are alike: here the keys and values of a block are of several widths"
            )
        self.cache = SharedKVCache(model.config, num_blocks, block_size, p, model.device, ops.select_victim)
        self.adapters = SharedAdapterCache(model, p, ops, self.cache, capacity, host_capacity, patience)
        self.cache.adapters = self.adapters

    def __repr__(self) -> str:
        return f"UnifiedPool({self.cache}, {self.adapters})"


class SharedKVCache(KVCache):
    """A KV cache in whose blocks adapters lie, too. An adapter that no running request uses may be evicted for KV."""

    adapters: "SharedAdapterCache"

    @property
    def available(self) -> int:
        """How many blocks could be had now: free ones, cached ones, and those of adapters that nobody uses."""
        return super().available + self.adapters.idle_blocks

    def _evict(self) -> int:
        """Make room by the policy: one cached block, or all blocks of one adapter, the least recently used of all."""
        adapters = self.adapters
        last_used = {**self._last_used, **{_key(slot): time for slot, time in adapters.last_used.items()}}
        ref_counts = {**self.ref_counts, **{_key(slot): count for slot, count in adapters.ref_counts.items()}}
        ref_counts |= {_key(slot): 1 for slot in adapters.protected}
        victim = self._select_victim(last_used, ref_counts)
        if victim is None:
            raise CacheFull("unified pool: nothing to evict")
        if victim >= 0:
            return self._forget(victim)
        adapters.evict(_key(victim))
        return self._free.pop()


def _key(slot: int) -> int:
    """Adapter slot -> its name among the blocks in front of the policy, -1, -2, ...; and back."""
    return -1 - slot


class SharedAdapterCache(AdapterCache):
    """An adapter cache whose slots take blocks of a KV cache, with the host tier behind it.

    An adapter is in use (some running request has it), idle (its blocks may be evicted), or on the host alone."""

    def __init__(
        self,
        model: Model,
        p: Precision,
        ops: Ops,
        cache: SharedKVCache,
        capacity: int | None = None,
        host_capacity: int | None = None,
        patience: int | None = PATIENCE,
    ) -> None:
        super().__init__(model, p, ops, capacity)
        self.slots: PagedSlots = PagedSlots(model, p, cache)
        self.host = HostTier(self.slots, ops, host_capacity)
        self.patience = patience
        self.idle_blocks = 0
        self.protected: set[int] = set()  # slots that a prefetch must not evict
        self._clock = cache.clock  # one time for blocks and adapters: which of them was used longest ago?
        self._cache = cache

    @property
    def last_used(self) -> Mapping[int, int]:
        """When each loaded adapter was used last, by slot."""
        return self._last_used

    def acquire(self, adapter: Adapter) -> int:
        """The slot that holds this adapter, copied from the host if it was not; it stays until `release`. CacheFull if
        its blocks cannot be had, before anything has changed."""
        if adapter not in self:
            self._load(adapter)
            self.misses += 1
        slot = self._slot_of[adapter]
        if slot not in self.ref_counts:
            self.idle_blocks -= self._blocks_at(slot)
        return super().acquire(adapter)

    def acquire_all(self, adapters: Sequence[tuple[Adapter, float]]) -> list[tuple[int, float]] | None:
        """(slot, weight) of each, or None, with nothing changed, if they do not all fit now."""
        names = {adapter for adapter, _ in adapters}
        idle = [self._slot_of[adapter] for adapter in names if adapter in self]
        idle_blocks = sum(self._blocks_at(slot) for slot in idle if slot not in self.ref_counts)
        missing = self.blocks_for([adapter for adapter in names if adapter not in self])
        if missing > self._cache.available - idle_blocks:
            return None
        return super().acquire_all(adapters)

    def release(self, slot: int) -> None:
        """Count one user less of the slot. The adapter stays until its room is needed."""
        super().release(slot)
        if slot not in self.ref_counts:
            self.idle_blocks += self._blocks_at(slot)

    def unload(self, adapter: Adapter) -> None:
        """As in AdapterCache; its copy on the host goes as well."""
        super().unload(adapter)
        self.host.forget(adapter)

    def prefetch(self, queue: Iterable[Adapter]) -> None:
        """Load what the queue asks for, in its order, into blocks that are free or cached or of adapters that it does
        not ask for, until one does not fit."""
        adapters = list(dict.fromkeys(queue))
        self.protected = {self._slot_of[adapter] for adapter in adapters if adapter in self}
        kept = sum(self._blocks_at(slot) for slot in self.protected if slot not in self.ref_counts)
        for adapter in adapters:
            if adapter in self:
                continue
            if self._full or self.blocks_for([adapter]) > self._cache.available - kept:
                break
            kept += self._blocks_at(self._load(adapter))
            self.protected.add(self._slot_of[adapter])
        self.protected = set()

    def blocks_for(self, adapters: Iterable[Adapter]) -> int:
        """How many blocks these adapters take together."""
        return sum(self.slots.blocks_for(self.host[adapter]) for adapter in set(adapters))

    def evict(self, slot: int) -> None:
        """Give the blocks of an adapter back; on the host it stays."""
        self._evict(slot)

    @property
    def _full(self) -> bool:
        return self.capacity is not None and len(self._slot_of) >= self.capacity

    def _blocks_at(self, slot: int) -> int:
        return len(self.slots.adapters[slot].blocks)

    def _load(self, adapter: Adapter) -> int:
        """Copy an adapter from the host into a slot, and return that; nobody uses it yet."""
        packed = self.host[adapter]
        count = self.slots.blocks_for(packed)
        if count > self._cache.available:
            raise CacheFull(f"unified pool: {adapter.name} takes {count} blocks, {self._cache.available} can be had")
        slot = self._free_slot()
        self.slots.place(slot, packed)
        self._assign(slot, adapter)
        self.idle_blocks += count
        self._touch(slot)
        return slot

    def _evict(self, slot: int) -> None:
        self.idle_blocks -= self._blocks_at(slot)
        self.slots.remove(slot)
        super()._evict(slot)
