"""The paged KV cache: blocks of `block_size` tokens, handed out, shared by prefix, and taken back.

A full block is known by its prefix key, a hash chain over everything that its keys and values depend on. Two requests
share a block only if the keys are equal, so nothing that a caller renames, reloads or renumbers can cause a hit.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .arrays import Array, Float, Int, Precision, device_namespace, namespace, rounded
from .config import ModelConfig
from .errors import CacheFull

NO_BLOCK = -1  # in a block table: a block that has left the sliding window

Victim = Callable[[Mapping[int, int], Mapping[int, int]], "int | None"]


def prefix_key(
    parent: bytes, token_ids: Sequence[int], base: bytes, p: Precision, adapters: Sequence[tuple[bytes, float]]
) -> bytes:
    """The name of one full block: SHA-256 of (key of the block before it, its tokens, the base's digest, the Precision,
    and for each adapter in order the digest of its effective weights and the bits of its weight)."""
    h = hashlib.sha256(parent)
    h.update(np.asarray(token_ids, np.int64).tobytes())
    h.update(base)
    h.update(repr(p).encode())
    for digest, weight in adapters:
        h.update(digest + np.float64(weight).tobytes())
    return h.digest()


def select_victim(last_used: Mapping[int, int], ref_counts: Mapping[int, int]) -> int | None:
    """The least recently used of those that nobody uses, or None. Decides for KV blocks and for adapters."""
    idle = [item for item in last_used if not ref_counts.get(item)]
    return min(idle, key=lambda item: last_used[item]) if idle else None


def slot_mapping(
    block_tables: Int[Array, "requests table"],
    positions: Int[Array, " tokens"],
    query_start_loc: Int[Array, " starts"],
    block_size: int,
) -> Int[Array, " tokens"]:
    """Where each token's key and value go: block * block_size + offset, through its request's block table."""
    request = np.repeat(np.arange(len(query_start_loc) - 1), np.diff(query_start_loc))
    block = block_tables[request, positions // block_size]
    return (block * block_size + positions % block_size).astype(np.int32)


def write_kv(
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    slot_mapping: Int[Array, " tokens"],
    p: Precision,
) -> None:
    """cache[slots[t]] = k[t], v[t]. Slots are pairwise different, so the order does not matter."""
    where = namespace(k).asarray(slot_mapping)
    k_cache.reshape(-1, *k.shape[1:])[where] = rounded(k, p.kv)
    v_cache.reshape(-1, *v.shape[1:])[where] = rounded(v, p.kv)


def write_kv_per_token(
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    slot_mapping: Int[Array, " tokens"],
    p: Precision,
) -> None:
    """The definition."""
    block_size = k_cache.shape[1]
    for t, slot in enumerate(slot_mapping):
        k_cache[slot // block_size, slot % block_size] = rounded(k[t], p.kv)
        v_cache[slot // block_size, slot % block_size] = rounded(v[t], p.kv)


class KVCache:
    """Keys and values of every layer, and who uses which block.

    A block is free, in use (by one or more requests), or idle: unused, but kept under its key until its room is needed.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = 16,
        p: Precision | None = None,
        device: str = "cpu",
        choose_victim: Victim = select_victim,
    ) -> None:
        p = p or Precision()
        shape = (config.num_hidden_layers, num_blocks, block_size, config.num_key_value_heads, config.head_dim)
        xp = device_namespace(device)
        # The values are rounded to p.kv when they are written; the array's own type is the one that products use.
        self.k: Array = xp.zeros(shape, p.compute)
        self.v: Array = xp.zeros(shape, p.compute)
        self.num_blocks, self.block_size = num_blocks, block_size
        self.ref_counts: dict[int, int] = {}  # block -> how many requests hold it
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: set[int] = set()
        self._by_key: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._last_used: dict[int, int] = {}  # of each block that has a key, idle or not
        self._victim, self._clock = choose_victim, itertools.count()

    @property
    def available(self) -> int:
        """Blocks that `take` could hand out now: the free ones and the idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def in_use(self) -> int:
        """Blocks that some request holds."""
        return len(self.ref_counts)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks for one new owner each, all or none. CacheFull before anything has changed."""
        if count > self.available:
            raise CacheFull(f"KV cache: {count} blocks of {self.block_size} tokens wanted, {self.available} can be had")
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self.ref_counts[block] = 1
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """One owner leaves. A block without owners becomes idle if it has a key, else free."""
        now = next(self._clock)
        for block in reversed(blocks):  # a popped block is the last one pushed: tables stay in rising order
            if block == NO_BLOCK:
                continue
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                del self.ref_counts[block]
                if block in self._key_of:
                    self._idle.add(block)
                    self._last_used.pop(block, None)  # so that the order of the dict is the order of last use
                    self._last_used[block] = now
                else:
                    self._free.append(block)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The longest run of blocks from the start that is known by these keys; the caller becomes an owner of each."""
        blocks = [self._by_key[key] for key in itertools.takewhile(self._by_key.__contains__, keys)]
        for block in blocks:
            self._idle.discard(block)
            self.ref_counts[block] = self.ref_counts.get(block, 0) + 1
        return blocks

    def cache_block(self, block: int, key: bytes) -> None:
        """A block that its owner has filled may be found under its key from now on. The first one to come is kept."""
        if key not in self._by_key and block not in self._key_of:
            self._by_key[key] = block
            self._key_of[block] = key
            self._last_used[block] = next(self._clock)

    def _evict(self) -> int:
        block = self._victim(self._last_used, self.ref_counts)
        if block is None:
            raise CacheFull("KV cache: no idle block to evict")
        self._idle.discard(block)
        del self._last_used[block]
        del self._by_key[self._key_of.pop(block)]
        return block

    def __repr__(self) -> str:
        counts = f"{len(self.ref_counts)} in use, {len(self._idle)} idle, {len(self._free)} free"
        return f"KVCache({self.num_blocks} blocks of {self.block_size}: {counts})"
