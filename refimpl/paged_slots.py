"""Adapter slots whose weights lie in blocks of the KV cache (S-LoRA, Sheng et al. 2023, section 5: unified paging).

A block of the KV cache is a column through 2 * layers strips of memory, keys and values of each layer. An adapter takes
as many blocks as its numbers need, and fills them strip by strip. One block's part of one strip is a page; an adapter
of eleven pages, in the blocks 1, 2 and 4 of a model of two layers:

    block             0    1    2    3    4    5
    keys, layer 0     kv   p0   p1   .    p2   kv        kv: keys or values of a request
    keys, layer 1     kv   p3   p4   .    p5   kv        p0 to p10: the adapter's numbers, in their order
    values, layer 0   kv   p6   p7   .    p8   kv        .: free
    values, layer 1   kv   p9   p10  .    -    kv        -: wasted, less than one block in all

The page table says where each page lies: strip * num_blocks + block. An adapter's numbers are A, B, bias and DoRA's
gain of every module, one after another. To read a module is to gather the pages in which it lies; where they lie side
by side the gather is a view.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .adapter_slots import AdapterSlots, BoundAdapter, LoraWeights, by_columns
from .arrays import Array, Float, Int, Precision, ceil_div, namespace, to_device, to_host
from .config import Module
from .dora import Dora
from .errors import CacheFull
from .kv_cache import KVCache
from .plans import Index, index_of
from .weights import Linear, Model

ALIGN = 8  # numbers: where an array may begin. 16 bytes of halves, a kernel's widest load; more is wasted at each array


@dataclass(frozen=True, eq=False)
class ModuleLayout:
    """Where one module's arrays lie among an adapter's numbers, and what it has besides arrays."""

    arrays: Mapping[str, tuple[int, tuple[int, ...]]]  # name -> where it begins, its shape
    start: int
    stop: int
    scale: float
    base_bias: Float[Array, " d_out"] | None  # of DoRA


@dataclass(frozen=True, eq=False)
class PackedAdapter:
    """One adapter's numbers in a row on the host: bound to the model, rounded, DoRA's gains computed."""

    numbers: Float[Array, " numbers"]
    layout: Mapping[Module, ModuleLayout]
    replaced: Mapping[Module, Linear]  # whole layers that it brings along: they stay outside of the pages


def pack(lora: Mapping[Module, LoraWeights], replaced: Mapping[Module, Linear], dtype: str) -> PackedAdapter:
    """Lay the weights of all modules in a row, layer by layer; each array begins at a multiple of ALIGN."""
    layout: dict[Module, ModuleLayout] = {}
    parts: list[Array] = []
    size = 0
    for module, weights in sorted(lora.items(), key=lambda item: item[0]):
        gain, base_bias = (None, None) if weights.dora is None else (weights.dora.gain, weights.dora.base_bias)
        arrays, start = {}, size
        for name, array in (("A", weights.A), ("B", weights.B), ("bias", weights.bias), ("gain", gain)):
            if array is not None:
                arrays[name] = size, array.shape
                parts += [to_host(array).reshape(-1), np.zeros(-array.size % ALIGN)]
                size += array.size + parts[-1].size
        layout[module] = ModuleLayout(arrays, start, size, weights.scale, base_bias)
    return PackedAdapter(np.concatenate(parts, dtype=dtype) if parts else np.zeros(0, dtype), layout, replaced)


@dataclass(frozen=True, eq=False)
class PagedAdapter:
    """One adapter in its blocks."""

    packed: PackedAdapter
    blocks: list[int]
    pages: Int[Array, " pages"]  # the page table: rows of PagedSlots.pages


class PagedWeights(Mapping[int, LoraWeights]):
    """Slot -> its LoRA weights in one module, gathered out of the pages at every look-up: nothing is kept beside."""

    def __init__(self, pages: Float[Array, "pages width"]) -> None:
        self.pages = pages
        self.entries: dict[int, tuple[ModuleLayout, int, Index]] = {}  # layout, its first page, where they all lie

    def add(self, slot: int, layout: ModuleLayout, table: Int[Array, " pages"]) -> None:
        """Note where the module of a slot lies."""
        width = self.pages.shape[1]
        first, past = layout.start // width, ceil_div(layout.stop, width)
        index = index_of(table[first:past].tolist())
        index = index if isinstance(index, slice) else namespace(self.pages).asarray(index)
        self.entries[slot] = layout, first * width, index

    def __getitem__(self, slot: int) -> LoraWeights:
        layout, begin, index = self.entries[slot]
        numbers = self.pages[index].reshape(-1)
        arrays = {
            name: numbers[start - begin : start - begin + math.prod(shape)].reshape(shape)
            for name, (start, shape) in layout.arrays.items()
        }
        dora = Dora(arrays["gain"], layout.base_bias) if "gain" in arrays else None
        return LoraWeights(arrays["A"], by_columns(arrays["B"]), layout.scale, arrays.get("bias"), dora=dora)

    def __contains__(self, slot: object) -> bool:
        return slot in self.entries

    def __iter__(self) -> Iterator[int]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class PagedSlots(AdapterSlots):
    """AdapterSlots that take the memory for LoRA weights out of a KV cache.

    Layers that an adapter brings along (modules_to_save, biases, trained tokens) have memory of their own, as there."""

    def __init__(self, model: Model, p: Precision, cache: KVCache) -> None:
        super().__init__(model, p)
        self.cache = cache
        width = cache.k[0][0].size  # block_size * key heads * head_dim
        self.pages: Float[Array, "pages width"] = cache.memory.reshape(-1, width)  # a view
        self.adapters: dict[int, PagedAdapter] = {}
        self._weights: dict[Module, PagedWeights] = {}

    def blocks_for(self, packed: PackedAdapter) -> int:
        """How many blocks an adapter takes."""
        return ceil_div(packed.numbers.size * self.cache.num_blocks, self.pages.size)

    def packed(self, bound: BoundAdapter) -> PackedAdapter:
        """The adapter as it will lie in the pages. AdapterError for a DoRA that this base makes impossible."""
        return pack(*self.prepared(bound), self.precision.compute)

    def put(self, slot: int, bound: BoundAdapter) -> None:
        """Fill a slot; what it held before is gone. CacheFull if the blocks are not there: it is as it was then."""
        self.place(slot, self.packed(bound))

    def place(self, slot: int, packed: PackedAdapter) -> None:
        """Copy a packed adapter into blocks of the cache. CacheFull as in put."""
        count, before = self.blocks_for(packed), self.adapters.get(slot)
        if count > self.cache.available + (0 if before is None else len(before.blocks)):
            raise CacheFull(f"KV cache: an adapter takes {count} blocks, {self.cache.available} can be had")
        self.remove(slot)
        blocks = sorted(self.cache.take(count))
        adapter = PagedAdapter(packed, blocks, self._page_table(packed, blocks))
        self._write(adapter)
        self.slots.add(slot)
        self.adapters[slot] = adapter
        for module, layout in packed.layout.items():
            self._weights.setdefault(module, PagedWeights(self.pages)).add(slot, layout, adapter.pages)
        for module, base in packed.replaced.items():
            self._base.setdefault(module, {})[slot] = base

    def remove(self, slot: int) -> None:
        """Empty a slot and give its blocks back; an empty one stays so."""
        super().remove(slot)
        for weights in self._weights.values():
            weights.entries.pop(slot, None)
        if slot in self.adapters:
            self.cache.give_back(self.adapters.pop(slot).blocks)

    def at(self, module: Module) -> Mapping[int, LoraWeights]:
        """Return the LoRA weights of each slot that has some in this module, read from the pages as they are now."""
        return self._weights.get(module, {})

    def shapes(self, module: Module) -> dict[int, tuple[int, int]]:
        """As in AdapterSlots, and nothing is gathered for it."""
        arrays = {slot: self.adapters[slot].packed.layout[module].arrays for slot in self.at(module)}
        return {slot: (each["B"][1][0], each["A"][1][1]) for slot, each in arrays.items()}

    @property
    def reserved(self) -> int:
        """No memory besides the KV cache's."""
        return 0

    def nbytes(self, slot: int) -> int:
        """The size of one slot's LoRA weights in bytes, without the unused end of its last block."""
        arrays = [each.arrays.values() for each in self.adapters[slot].packed.layout.values()]
        return sum(math.prod(shape) for each in arrays for _, shape in each) * self.pages.itemsize

    def _page_table(self, packed: PackedAdapter, blocks: list[int]) -> Int[Array, " pages"]:
        """Page i is block i % len(blocks) of strip i // len(blocks)."""
        pages, width = self.pages.shape
        strips = np.arange(0, pages, self.cache.num_blocks)[:, None]
        return (strips + np.array(blocks, np.int64)).reshape(-1)[: ceil_div(packed.numbers.size, width)]

    def _write(self, adapter: PagedAdapter) -> None:
        """Copy the numbers; the end of the last page is zeros."""
        numbers, width = adapter.packed.numbers, self.pages.shape[1]
        padded = np.concatenate([numbers, np.zeros(-numbers.size % width, numbers.dtype)]).reshape(-1, width)
        self.pages[namespace(self.pages).asarray(adapter.pages)] = to_device(padded, self.model.device)
