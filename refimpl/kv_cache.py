"""The paged KV cache: blocks of `block_size` tokens, handed out, shared by prefix, and taken back.

A token's key and value lie in a KV slot: block * block_size + offset. A request's block table names its blocks in the
order of its positions; they may lie anywhere:

    positions     0 1 2 3 | 4 5 6 7 | 8          block_size 4, block table [5, 0, 2]
    KV slots   20 21 22 23| 0 1 2 3 | 8

A full block is known by its prefix key, a hash chain over everything that its keys and values depend on. Two requests
share a block only if the keys are equal, so nothing that a caller renames, reloads or renumbers can cause a hit.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .arrays import Array, Float, Precision, device_namespace, rounded
from .config import KVShape, ModelConfig
from .errors import CacheFull
from .plans import NO_BLOCK, AttentionMetadata

SelectVictim = Callable[[Mapping[int, int], Mapping[int, int]], "int | None"]


def prefix_key(
    parent: bytes, token_ids: Sequence[int], base: bytes, p: Precision, adapters: Sequence[tuple[bytes, float]]
) -> bytes:
    """Return the key of one full block: SHA-256 of (key of the block before it, its tokens, the base's identity, the
    Precision, and for each adapter in order the digest of its effective weights and the bits of its weight)."""
    h = hashlib.sha256(parent)
    h.update(np.asarray(token_ids, np.int64).tobytes())
    h.update(base)
    h.update(repr(p).encode())
    for digest, weight in adapters:
        h.update(digest + np.float64(weight).tobytes())
    return h.digest()


def select_victim(last_used: Mapping[int, int], ref_counts: Mapping[int, int]) -> int | None:
    """Return the least recently used of those that nobody uses, or None. Decides for KV blocks and for adapters."""
    unused = [item for item in last_used if not ref_counts.get(item)]
    return min(unused, key=lambda item: last_used[item]) if unused else None


def write_kv(
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads value_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads value_dim"],
    metadata: AttentionMetadata,
    p: Precision,
) -> None:
    """cache[slot_mapping[t]] = k[t], v[t]. Slots are pairwise different, so the order does not matter."""
    slots = metadata.device.slot_mapping
    k_cache.reshape(-1, *k.shape[1:])[slots] = rounded(k, p.kv)
    v_cache.reshape(-1, *v.shape[1:])[slots] = rounded(v, p.kv)


def write_kv_per_token(
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads value_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads value_dim"],
    metadata: AttentionMetadata,
    p: Precision,
) -> None:
    """The definition."""
    block_size = k_cache.shape[1]
    for t, slot in enumerate(metadata.slot_mapping.tolist()):
        k_cache[slot // block_size, slot % block_size] = rounded(k[t], p.kv)
        v_cache[slot // block_size, slot % block_size] = rounded(v[t], p.kv)


def layer_views(
    memory: Float[Array, " numbers"], shapes: Sequence[tuple[int, ...]], config: ModelConfig
) -> Array | list[Float[Array, "blocks block_size kv_heads head_dim"]]:
    """Each layer's part, of this shape, of the keys or of the values: one array [layers, blocks, block_size, kv_heads,
    head_dim] where all layers are alike. A layer that has no keys of its own (LayerKind.kv_from) has the part of that
    one."""
    if shapes and config.uniform_kv:
        return memory.reshape(len(shapes), *shapes[0])
    views: list[Array] = []
    start = 0
    for i, shape in enumerate(shapes):
        source = config.kind(i).kv_from
        size = math.prod(shape) if source is None else 0
        views.append(memory[start : start + size].reshape(shape) if source is None else views[source])
        start += size
    return views


class KVCache:
    """Keys and values of every layer, and who uses which block.

    A block is free, in use (by one or more requests), or cached: used by nobody, but kept under its prefix key until
    its room is needed. The methods are those of vLLM's block pool: allocate, free, match_prefix, cache_block.

        free --allocate--> in use --free--> cached (if it has a key; else free again)
                             ^                |
                             +--match_prefix--+
                             +--allocate------+  when no block is free: the least recently used one loses its key
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = 16,
        p: Precision | None = None,
        device: str = "cpu",
        select_victim: SelectVictim = select_victim,
        kv_shape: Callable[[ModelConfig, int], KVShape] = ModelConfig.kv_shape,
    ) -> None:
        p = p or Precision()
        xp = device_namespace(device)
        # The values are rounded to p.kv when they are written; the array's own type is the one that products use.
        shapes = [kv_shape(config, i) for i in range(config.num_hidden_layers)]
        sizes = [num_blocks * block_size * sum(shapes[i].numbers[j] for i in config.kv_layers) for j in (0, 1)]
        self.memory: Array = xp.zeros(sum(sizes), p.compute)
        room = (num_blocks, block_size)
        self.v: Array | list[Array]
        self.k = layer_views(self.memory[: sizes[0]], [(*room, shape.heads, shape.key) for shape in shapes], config)
        if any(shape.shared for shape in shapes):
            self.v = [k[..., -shape.value :] for k, shape in zip(self.k, shapes, strict=True)]
        else:
            values = [(*room, shape.heads, shape.value) for shape in shapes]
            self.v = layer_views(self.memory[sizes[0] :], values, config)
        self.num_blocks, self.block_size, self.window = num_blocks, block_size, config.sliding_window
        self.ref_counts: dict[int, int] = {}  # block -> how many requests hold it: the blocks in use
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: set[int] = set()
        self._block_of_key: dict[bytes, int] = {}  # of the cached blocks, and of full ones that are in use
        self._key_of: dict[int, bytes] = {}  # the same the other way round
        self._last_used: dict[int, int] = {}  # of each block that has a key, in use or not
        self._select_victim, self.clock = select_victim, itertools.count()

    @property
    def available(self) -> int:
        """How many blocks `allocate` could hand out now: the free ones and the cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def in_use(self) -> int:
        """How many blocks some request holds."""
        return len(self.ref_counts)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many blocks are in use, cached, and free."""
        return len(self.ref_counts), len(self._cached), len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` blocks with one owner each, all or none. CacheFull before anything has changed."""
        blocks = self.take(count)
        for block in blocks:
            self.ref_counts[block] = 1
        return blocks

    def take(self, count: int) -> list[int]:
        """Hand out `count` blocks without owners, for what is no KV (unified_pool.py). CacheFull as in allocate."""
        if count > self.available:
            raise CacheFull(f"KV cache: {count} blocks of {self.block_size} tokens wanted, {self.available} can be had")
        return [self._free.pop() if self._free else self._evict() for _ in range(count)]

    def give_back(self, blocks: Sequence[int]) -> None:
        """Make blocks that were taken free again."""
        self._free += reversed(blocks)

    def free(self, blocks: Sequence[int]) -> None:
        """Take one owner away from each. A block without owners stays cached if it has a key, else it is free."""
        now = next(self.clock)
        # Reversed, because a popped block is the last one pushed: the next table then rises, and attention reads
        # blocks that lie side by side as a view. Cached blocks get one time, and the dict's order decides among them:
        # the last block of a prefix is evicted before the ones that it continues.
        for block in reversed(blocks):
            if block == NO_BLOCK:
                continue
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                del self.ref_counts[block]
                if block in self._key_of:
                    self._cached.add(block)
                    self._last_used.pop(block, None)
                    self._last_used[block] = now
                else:
                    self._free.append(block)

    def match_prefix(self, keys: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest prefix of these keys that is cached; the caller becomes an owner of each."""
        blocks: list[int] = []
        for key in keys:
            block = self._block_of_key.get(key)
            if block is None:
                break
            self._cached.discard(block)
            self.ref_counts[block] = self.ref_counts.get(block, 0) + 1
            blocks.append(block)
        return blocks

    def cache_block(self, block: int, key: bytes) -> None:
        """Let a block that its owner has filled be matched by its key from now on. The first block of a key is kept."""
        if key not in self._block_of_key and block not in self._key_of:
            self._block_of_key[key] = block
            self._key_of[block] = key
            self._last_used[block] = next(self.clock)

    def _evict(self) -> int:
        """Make one block free, and return it."""
        block = self._select_victim(self._last_used, self.ref_counts)
        if block is None:
            raise CacheFull("KV cache: no cached block to evict")
        return self._forget(block)

    def _forget(self, block: int) -> int:
        """Take a cached block's key from it, and return the block."""
        self._cached.discard(block)
        del self._last_used[block]
        del self._block_of_key[self._key_of.pop(block)]
        return block

    def __repr__(self) -> str:
        in_use, cached, free = self.counts
        return f"KVCache({self.num_blocks} blocks of {self.block_size}: {in_use} in use, {cached} cached, {free} free)"
