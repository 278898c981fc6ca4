"""How TensorRT-LLM lays adapters out in its LoRA cache: pages of slots, and an adapter in whole pages.

A slot is as wide as rank 1 of the narrowest module, in + out numbers. A row of lora_config (one module of one layer)
takes as many slots as its A and B need, side by side, and never reaches over the end of a page; an adapter begins with
a page of its own (runtime/loraCache.cpp, batch_manager/peftCacheManager.cpp). All sizes are those of one rank of a
tensor-parallel group, and in numbers, not bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import LoracleError

Row = tuple[int, int, int]  # module id, layer, rank: a row of lora_config
Widths = Mapping[int, tuple[int, int]]  # module id -> (d_in, d_out)

OPTIMAL_RANK, MAX_RANK = 8, 64  # optimalAdapterSize and maxAdapterSize, as they are unless configured


@dataclass(frozen=True)
class PageShape:
    """slots_per_page slots of slot_width numbers."""

    slot_width: int
    slots_per_page: int


def page_shape(widths: Widths, layers: int, optimal_rank: int = OPTIMAL_RANK, max_rank: int = MAX_RANK) -> PageShape:
    """A page holds an adapter of the optimal rank in all modules of all layers, or, if that is more, one row of the
    widest module at the largest rank."""
    sizes = [d_in + d_out for d_in, d_out in widths.values()]
    width = min(sizes)
    all_slots = layers * sum(optimal_rank * slots_for(size, width) for size in sizes)
    return PageShape(width, max(all_slots, slots_for(max_rank * max(sizes), width)))


def slots_for(size: int, width: int) -> int:
    """Slots that so many numbers take."""
    return -(-size // width)


def placements(rows: Sequence[Row], widths: Widths, shape: PageShape) -> list[tuple[int, int, int]]:
    """For each row: its page (counted from the adapter's first), its first slot there, and how many slots it takes."""
    places, page, slot = [], 0, 0
    for module, _, rank in rows:
        count = slots_for(rank * sum(widths[module]), shape.slot_width)
        if slot + count > shape.slots_per_page:
            page, slot = page + 1, 0
        places.append((page, slot, count))
        slot += count
    return places


def pages_for(rows: Sequence[Row], widths: Widths, shape: PageShape) -> int:
    """Pages that an adapter takes: at least one."""
    return 1 + max((page for page, _, _ in placements(rows, widths, shape)), default=0)


def page_count(
    level: str, cache_bytes: int, itemsize: int, widths: Widths, layers: int, shape: PageShape, max_rank: int = MAX_RANK
) -> int:
    """Pages of a cache of so many bytes, rounded up. LoracleError, in TensorRT-LLM's words, where one adapter of the
    largest rank would not fit. `level` is host or device."""
    slots = cache_bytes // (shape.slot_width * itemsize)
    least = slots_for(max_rank * layers * sum(map(sum, widths.values())), shape.slot_width)
    if slots < least:
        raise LoracleError(
            f"Not enough space allocated to {level} LoRA cache to hold 1 max sized LoRA {slots} < {least}"
        )
    return slots_for(slots, shape.slots_per_page)
