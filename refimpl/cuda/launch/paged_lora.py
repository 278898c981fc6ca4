"""lora_paged.cu: adapters that lie in blocks of a KV cache (paged_slots.py), as its kernels find their numbers."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...arrays import namespace
from ...config import Module
from ...dora import Dora
from ...errors import LoracleError
from ...paged_slots import PagedSlots
from .gains import pack_gains
from .lora import MAX_RANK, PackedLora, PageTable


def page(
    adapters: PagedSlots,
    slices: Sequence[Mapping[int, tuple[int, Module]]],
    d_outs: Sequence[int],
    dtype: str,
    ids: int,
) -> PackedLora:
    """Return the tables of some adapters in layers that read the same input. Nothing of A and B is copied.

    Each slice: adapter id, below `ids` -> the slot and the module in which it lies; adapter ids as the kernels see
    them. dtype: of x and y; the pages are float32, and their numbers exact in that type. LoracleError for a rank that
    the kernels do not take, and for layers whose inputs differ in width."""
    offsets = np.full((len(slices), ids, 3), -1, np.int64)
    ranks = np.zeros((len(slices), ids), np.int32)
    scales = np.zeros((len(slices), ids), np.float32)
    gains: list[dict[int, Dora]] = [{} for _ in slices]  # copied: few numbers, and the base's bias is in no page
    widths = set()
    for index, resident in enumerate(slices):
        for number, (slot, module) in resident.items():
            layout = adapters.adapters[slot].packed.layout[module]
            rank, d_in = layout.arrays["A"][1]
            if rank > MAX_RANK:
                raise LoracleError(f"adapter slot {slot}: rank {rank}; the kernels take ranks from 1 to {MAX_RANK}")
            widths.add(d_in)
            ranks[index, number], scales[index, number] = rank, layout.scale
            for i, name in enumerate(("A", "B", "bias")):
                offsets[index, number, i] = layout.arrays[name][0] if name in layout.arrays else -1
            dora = adapters.at(module)[slot].dora if "gain" in layout.arrays else None
            if dora is not None:
                gains[index][number] = dora
    if len(widths) > 1:
        raise LoracleError(f"layers that share a launch must share their input; these read {sorted(widths)} columns")
    slot_of = {number: slot for resident in slices for number, (slot, _) in resident.items()}
    begin, rows = {}, [np.zeros(0, np.int32)]
    for slot in sorted(set(slot_of.values())):
        begin[slot] = sum(map(len, rows))
        rows.append(adapters.adapters[slot].pages.astype(np.int32))
    starts = np.zeros(ids, np.int32)
    for number, slot in slot_of.items():
        starts[number] = begin[slot]
    xp = namespace(adapters.pages)
    return PackedLora(
        dtype,
        adapters.pages,
        xp.asarray(offsets),
        xp.asarray(ranks),
        xp.asarray(scales),
        xp.asarray(np.concatenate([[0], np.cumsum(d_outs)]).astype(np.int32)),
        widths.pop() if widths else 0,
        ids,
        int(ranks.max(initial=0)),
        max(d_outs),
        sum(d_outs),
        PageTable(xp.asarray(np.concatenate(rows)), xp.asarray(starts), adapters.pages.shape[1]),
        pack_gains(gains, ids, xp),
    )
