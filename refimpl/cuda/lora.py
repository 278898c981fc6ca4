"""The LoRA step of the CUDA backend: the adapters of a set of slots packed for the kernels, and their launches.

What the kernels call an adapter is a number that is below the length of their tables. At one module that is the slot.
At the experts of a layer, one launch for all of them, it is expert * slots + slot: the expert's number is a part of it,
and the rows of a segment are those that go through one expert with one adapter.
"""

from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Float, Precision, namespace, rounded
from ..config import EMBED, Module, module_name
from ..errors import LoracleError
from ..paged_slots import PagedSlots
from ..plans import LoraMapping
from . import launch
from .launch import PackedLora, stored, widened
from .points import kernel_type, rounds

# Where the input of a module comes from: the point at which it was rounded.
INPUT = {"o_proj": "attention", "down_proj": "activation"}

# What was packed of each set of slots: (modules, T) -> the weights and the number of slots it was made of, and the
# buffers. Packed again when other weights are there; the weights themselves never change.
Modules = tuple[Module, ...]  # one, or the same one of every expert
Groups = list[tuple[frozenset[int], PackedLora]]  # the adapters whose weights lie in each buffer
Packings = dict[tuple[Modules, str], tuple[Mapping[int, object], int, Groups]]
_packed: WeakKeyDictionary[AdapterSlots, Packings] = WeakKeyDictionary()


def slot_count(adapters: AdapterSlots) -> int:
    """How many slots the tables of the kernels have."""
    return 1 + max(adapters.slots, default=-1)


def adapters_at(adapters: AdapterSlots, modules: Modules) -> dict[int, tuple[int, Module]]:
    """What the kernels call an adapter -> the slot and the module in which it lies."""
    count = slot_count(adapters)
    return {
        place * count + slot: (slot, module) for place, module in enumerate(modules) for slot in adapters.at(module)
    }


def packed_at(adapters: AdapterSlots, modules: Modules, dtype: str) -> Groups:
    """Return all adapters of these modules, packed once per change of the slots."""
    packings, count = _packed.setdefault(adapters, {}), slot_count(adapters)
    resident = adapters_at(adapters, modules)
    weights: Mapping[int, object]
    if isinstance(adapters, PagedSlots):  # compared by where they lie, without reading them
        weights = {number: adapters.adapters[slot] for number, (slot, _) in resident.items()}
    else:
        weights = {number: adapters.at(module)[slot] for number, (slot, module) in resident.items()}
    if (modules, dtype) not in packings or packings[modules, dtype][:2] != (weights, count):
        packings[modules, dtype] = (weights, count, _pack(adapters, resident, dtype, count * len(modules)))
    return packings[modules, dtype][2]


def _pack(adapters: AdapterSlots, resident: Mapping[int, tuple[int, Module]], dtype: str, ids: int) -> Groups:
    """Those of one width in one buffer; those that lie in pages stay there, and only their tables are made.
    LoracleError for a rank that the kernels do not take.

    Nearly always that is one buffer. Adapters that extend the vocabulary are wider at the embedding and the lm_head."""
    shapes = {module: adapters.shapes(module) for _, module in resident.values()}
    by_shape: dict[tuple[int, int], dict[int, tuple[int, Module]]] = {}
    for number, (slot, module) in resident.items():
        by_shape.setdefault(shapes[module][slot], {})[number] = slot, module
    groups: Groups = []
    for (d_out, _), alike in by_shape.items():
        if isinstance(adapters, PagedSlots):
            packed = launch.page(adapters, [alike], [d_out], dtype, ids)
        else:
            group = {number: adapters.at(module)[slot] for number, (slot, module) in alike.items()}
            for number, (slot, module) in alike.items():  # by the names that the user knows
                if (rank := len(group[number].A)) > launch.MAX_RANK:
                    what = f"adapter slot {slot}: {module_name(module)} has rank {rank}"
                    raise LoracleError(
                        f"ops cuda: {what}; the kernels take ranks up to {launch.MAX_RANK}; use ops numpy"
                    )
            packed = launch.pack([group], [d_out], dtype, ids, xp=namespace(next(iter(group.values())).B))
        groups.append((frozenset(alike), packed))
    return groups


def lora_delta(
    y: Float[Array, "tokens d_out"],
    x: Array,
    module: Module,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
) -> None:
    """y[t] += weight * scale * B (A x[t]), and what DoRA does with it: one launch for each of the k adapters that a
    request may sum.

    (And for each width, where adapters of the batch differ in theirs.)"""
    source = ["embedding"] if module == EMBED else [INPUT.get(module[1], "norm")]
    add_lora(y, x, (module,), adapters, mapping, p, source)


def add_lora(
    y: Float[Array, "rows d_out"],
    x: Array,
    modules: Modules,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
    source: Sequence[str],
) -> None:
    """The same for rows that go through one of these modules each; the mapping names adapters as the kernels do.

    source: the points at which x was rounded."""
    if mapping.slots.isdisjoint(adapters_at(adapters, modules)):
        return
    points = ["adapter", "linear", *source]
    dtype = kernel_type("lora_delta", p, points, ["lora_rank", "lora_delta"])
    groups = [packed for resident, packed in packed_at(adapters, modules, dtype) if mapping.slots & resident]
    inputs = x if modules == (EMBED,) else stored(x, dtype)
    for j, column in enumerate(mapping.device.columns):
        for packed in groups:
            if packed.gains is not None and packed.gains.biased:  # y less the base's bias is rounded to what y is
                kernel_type("lora_delta", p, points, ["linear"])
            result = stored(y, dtype)  # y itself if it is float32 and contiguous
            launch.lora_delta(result, inputs, packed, mapping, j, rounds(p, "lora_rank"), rounds(p, "lora_delta"))
            if result is not y or p.linear != "float32":
                rows = column.sorted_rows
                y[rows, : packed.columns] = rounded(widened(result[rows, : packed.columns], dtype), p.linear)
