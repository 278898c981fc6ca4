"""lora_paged.cu: adapters that lie in blocks of a KV cache (paged_slots.py), as its kernels find their numbers."""

from collections.abc import Collection, Sequence

import numpy as np

from ...arrays import namespace
from ...config import Module
from ...dora import Dora
from ...errors import LoracleError
from ...paged_slots import PagedSlots
from .gains import pack_gains
from .lora import MAX_RANK, PackedLora, PageTable


def page(
    adapters: PagedSlots, modules: Sequence[Module], d_outs: Sequence[int], slots: Collection[int], dtype: str
) -> PackedLora:
    """Return the tables of some slots in layers that read the same input. Nothing of A and B is copied.

    dtype: of x and y; the pages are float32, and their numbers exact in that type. LoracleError for a rank that the
    kernels do not take, and for layers whose inputs differ in width."""
    layouts = [
        (index, slot, adapters.adapters[slot].packed.layout[module].arrays)
        for index, module in enumerate(modules)
        for slot in slots
        if slot in adapters.at(module)
    ]
    count = 1 + max(adapters.slots, default=0)
    offsets = np.full((len(modules), count, 3), -1, np.int64)
    ranks = np.zeros((len(modules), count), np.int32)
    scales = np.zeros((len(modules), count), np.float32)
    for index, slot, arrays in layouts:
        rank = arrays["A"][1][0]
        if rank > MAX_RANK:
            raise LoracleError(f"adapter slot {slot}: rank {rank}; the kernels take ranks from 1 to {MAX_RANK}")
        ranks[index, slot], scales[index, slot] = rank, adapters.adapters[slot].packed.layout[modules[index]].scale
        for i, name in enumerate(("A", "B", "bias")):
            offsets[index, slot, i] = arrays[name][0] if name in arrays else -1
    gains: list[dict[int, Dora]] = [{} for _ in modules]  # copied: few numbers, and the base's bias is in no page
    for index, slot, arrays in layouts:
        dora = adapters.at(modules[index])[slot].dora if "gain" in arrays else None
        if dora is not None:
            gains[index][slot] = dora
    widths = {arrays["A"][1][1] for _, _, arrays in layouts}
    if len(widths) > 1:
        raise LoracleError(f"layers that share a launch must share their input; these read {sorted(widths)} columns")
    starts, rows = np.zeros(count, np.int32), [np.zeros(0, np.int32)]
    for slot in sorted(slots):
        starts[slot] = sum(map(len, rows))
        rows.append(adapters.adapters[slot].pages.astype(np.int32))
    xp = namespace(adapters.pages)
    return PackedLora(
        dtype,
        adapters.pages,
        xp.asarray(offsets),
        xp.asarray(ranks),
        xp.asarray(scales),
        xp.asarray(np.concatenate([[0], np.cumsum(d_outs)]).astype(np.int32)),
        widths.pop() if widths else 0,
        count,
        int(ranks.max(initial=0)),
        max(d_outs),
        sum(d_outs),
        PageTable(xp.asarray(np.concatenate(rows)), xp.asarray(starts), adapters.pages.shape[1]),
        pack_gains(gains, count, xp),
    )
