"""C. Memory: adapters that are evicted and loaded again, and are not what they were. Seen only in a sequence."""

import dataclasses
from collections.abc import Mapping

from ...adapter import Adapter
from ...config import ModelConfig, Module
from ...lora import AdapterSlots, BoundAdapter, LoraWeights, bind_adapter
from ...ops import NUMPY, Ops
from .mutant import Family
from .steps import Scale, Slots, but, reading

memory = Family("C")
Place = tuple[AdapterSlots, Module, int]  # one slot of one adapters, at one site


@memory.bug(
    "a name that is known is not loaded again: the weights that had it first answer",
    "https://github.com/sgl-project/sglang/issues/8263",
    "https://github.com/vllm-project/vllm-metal/pull/351",
    needs="sequence",
)
def bound_by_name() -> Ops:
    known: dict[tuple[ModelConfig, str], BoundAdapter] = {}

    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        return known.setdefault((config, adapter.name), bind_adapter(adapter, config, scale))

    return but(bind_adapter=bind)


@memory.bug("an adapter that is loaded again under its name gets its new A, and keeps the old B", needs="sequence")
def reload_keeps_B() -> Ops:
    known: dict[tuple[ModelConfig, str, Module], LoraWeights] = {}

    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        bound = bind_adapter(adapter, config, scale)
        lora = {}
        for module, w in bound.lora.items():
            old = known.setdefault((config, adapter.name, module), w)
            lora[module] = dataclasses.replace(w, B=old.B) if old.B.shape == w.B.shape else w
        return dataclasses.replace(bound, lora=lora)

    return but(bind_adapter=bind)


@memory.bug(
    "a pointer that was cached for a slot outlives the slot's adapter",
    "https://github.com/a710128/nanovllm-voxcpm/pull/66",
    "https://github.com/vllm-project/vllm/blob/046d2b1/tests/lora/test_punica_ops.py",
    needs="sequence",
)
def slot_keeps_its_first_weights() -> Ops:
    first: dict[Place, LoraWeights] = {}

    def cached(adapters: AdapterSlots, module: Module) -> Slots:
        return {slot: first.setdefault((adapters, module, slot), w) for slot, w in adapters.at(module).items()}

    return but(lora_delta=reading(cached))


@memory.bug("a slot that gets a new adapter keeps the old one's weights where the new one has none", needs="sequence")
def slot_not_cleared() -> Ops:
    left: dict[Place, LoraWeights] = {}

    def with_leftovers(adapters: AdapterSlots, module: Module) -> Slots:
        left.update({(adapters, module, slot): w for slot, w in adapters.at(module).items()})
        return {slot: left[adapters, module, slot] for slot in adapters.slots if (adapters, module, slot) in left}

    return but(lora_delta=reading(with_leftovers))


@memory.bug("a slot that gets a new adapter keeps the old one's scale", needs="sequence")
def slot_keeps_its_first_scale() -> Ops:
    first: dict[Place, float] = {}

    def rescaled(adapters: AdapterSlots, module: Module) -> Slots:
        at = adapters.at(module).items()
        return {
            slot: dataclasses.replace(w, scale=first.setdefault((adapters, module, slot), w.scale)) for slot, w in at
        }

    return but(lora_delta=reading(rescaled))


@memory.bug(
    "an adapter that is loaded into a used slot is registered and never copied there: the base answers",
    "https://github.com/vllm-project/vllm-metal/pull/641",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/5616",
    needs="sequence",
)
def refilled_slot_is_base() -> Ops:
    first: dict[Place, LoraWeights] = {}

    def resident(adapters: AdapterSlots, module: Module) -> Slots:
        return {
            slot: w for slot, w in adapters.at(module).items() if first.setdefault((adapters, module, slot), w) is w
        }

    return but(lora_delta=reading(resident))


@memory.bug(
    "when every slot is in use, the least recently used is taken from its running request",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/5616",
    needs="sequence",
)
def victim_in_use() -> Ops:
    def select_victim(last_used: Mapping[int, int], ref_counts: Mapping[int, int]) -> int | None:
        idle = NUMPY.select_victim(last_used, ref_counts)
        return min(last_used, key=last_used.__getitem__, default=None) if idle is None else idle

    return but(select_victim=select_victim)
