"""C. Memory: adapters that are evicted and loaded again, and are not what they were. Seen only in a sequence."""

import dataclasses
from collections.abc import Collection, Hashable, Mapping, Sequence

from ...adapter import Adapter
from ...adapter_slots import AdapterSlots, BoundAdapter, LoraWeights, bind_adapter
from ...config import ModelConfig, Module
from ...ops import NUMPY, Ops
from .mutant import Family
from .steps import Scale, Slots, but, reading

memory = Family("C", "adapters in memory")
SlotOfModule = tuple[AdapterSlots, Module, int]  # one slot of an engine, in one module


@memory.bug(
    "a name that is known is not loaded again: the weights that had it first answer",
    "https://github.com/sgl-project/sglang/issues/8263",
    "https://github.com/vllm-project/vllm-metal/pull/351",
    needs="sequence",
)
def bound_by_name() -> Ops:
    first: dict[tuple[ModelConfig, str], BoundAdapter] = {}

    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        return first.setdefault((config, adapter.name), bind_adapter(adapter, config, scale))

    return but(bind_adapter=bind)


@memory.bug("an adapter that is loaded again under its name gets its new A, and keeps the old B", needs="sequence")
def reload_keeps_B() -> Ops:
    first: dict[tuple[ModelConfig, str, Module], LoraWeights] = {}

    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        bound = bind_adapter(adapter, config, scale)
        adapted = {}
        for module, lora in bound.lora.items():
            old = first.setdefault((config, adapter.name, module), lora)
            adapted[module] = dataclasses.replace(lora, B=old.B) if old.B.shape == lora.B.shape else lora
        return dataclasses.replace(bound, lora=adapted)

    return but(bind_adapter=bind)


@memory.bug(
    "a pointer that was cached for a slot outlives the slot's adapter",
    "https://github.com/a710128/nanovllm-voxcpm/pull/66",
    "https://github.com/vllm-project/vllm/blob/046d2b1/tests/lora/test_punica_ops.py",
    needs="eviction",
)
def slot_keeps_its_first_weights() -> Ops:
    first: dict[SlotOfModule, LoraWeights] = {}

    def cached(adapters: AdapterSlots, module: Module) -> Slots:
        return {slot: first.setdefault((adapters, module, slot), lora) for slot, lora in adapters.at(module).items()}

    return but(lora_delta=reading(cached))


@memory.bug("a slot that gets a new adapter keeps the old one's weights where the new one has none", needs="eviction")
def slot_not_cleared() -> Ops:
    latest: dict[SlotOfModule, LoraWeights] = {}

    def with_leftovers(adapters: AdapterSlots, module: Module) -> Slots:
        latest.update({(adapters, module, slot): lora for slot, lora in adapters.at(module).items()})
        return {slot: latest[adapters, module, slot] for slot in adapters.slots if (adapters, module, slot) in latest}

    return but(lora_delta=reading(with_leftovers))


@memory.bug("a slot that gets a new adapter keeps the old one's scale", needs="eviction")
def slot_keeps_its_first_scale() -> Ops:
    first: dict[SlotOfModule, float] = {}

    def rescaled(adapters: AdapterSlots, module: Module) -> Slots:
        at = adapters.at(module).items()
        return {
            slot: dataclasses.replace(lora, scale=first.setdefault((adapters, module, slot), lora.scale))
            for slot, lora in at
        }

    return but(lora_delta=reading(rescaled))


@memory.bug(
    "an adapter that is loaded into a used slot is registered and never copied there: the base answers",
    "https://github.com/vllm-project/vllm-metal/pull/641",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/5616",
    needs="eviction",
)
def refilled_slot_is_base() -> Ops:
    first: dict[SlotOfModule, LoraWeights] = {}

    def resident(adapters: AdapterSlots, module: Module) -> Slots:
        return {
            slot: lora
            for slot, lora in adapters.at(module).items()
            if first.setdefault((adapters, module, slot), lora) is lora
        }

    return but(lora_delta=reading(resident))


@memory.bug(
    "when every slot is in use, the least recently used is taken from its running request",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/5616",
    "https://github.com/NVIDIA/TensorRT-LLM/issues/1552",
    needs="eviction",
)
def victim_in_use() -> Ops:
    def select_victim(last_used: Mapping[int, int], ref_counts: Mapping[int, int]) -> int | None:
        idle = NUMPY.select_victim(last_used, ref_counts)
        return min(last_used, key=last_used.__getitem__, default=None) if idle is None else idle

    def admit(waiting: Sequence[Collection[Hashable]], in_use: Collection[Hashable], capacity: int | None) -> range:
        return range(len(waiting))  # nobody asks whether there is room: the victim makes it

    return but(select_victim=select_victim, admit=admit)
