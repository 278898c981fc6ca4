"""The bugs that have one adapter as their parameter: everybody gets it, or nobody does."""

import dataclasses

from ...adapter import Adapter
from ...adapter_slots import AdapterSlots, BoundAdapter, bind_adapter
from ...config import ModelConfig, Module
from ...ops import Ops
from .b_identity import EMPTY
from .mutant import Mutant
from .steps import Scale, Slots, binding, but, reading


def named(name: str) -> list[Mutant]:
    """The mutants that have this adapter as their parameter."""
    return [
        Mutant(
            f"another_adapter[{name}]",
            "B",
            f"every request that asked for some adapter gets {name}'s weights",
            (),
            lambda: another_adapter(name),
        ),
        Mutant(
            f"base_for[{name}]",
            "B",
            f"{name} is not known to the engine, which answers with the base and says nothing",
            ("https://github.com/huggingface/text-generation-inference/issues/2505",),
            lambda: base_for(name),
        ),
    ]


def another_adapter(name: str) -> Ops:
    """Everyone's ids point to this adapter, once it was loaded."""
    theirs: dict[str, BoundAdapter] = {}
    copies: dict[AdapterSlots, AdapterSlots] = {}

    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        bound = bind_adapter(adapter, config, scale)
        if adapter.name == name:
            theirs[name] = bound
            copies.clear()
        return bound

    def reads(adapters: AdapterSlots, module: Module) -> Slots:
        if name not in theirs:
            return adapters.at(module)
        if adapters not in copies:
            copies[adapters] = AdapterSlots(adapters.model, adapters.precision)
            copies[adapters].put(0, dataclasses.replace(theirs[name], replaced={}, biases={}))
        return {slot: lora for lora in copies[adapters].at(module).values() for slot in adapters.slots}

    return but(bind_adapter=bind, lora_delta=reading(reads))


def base_for(name: str) -> Ops:
    """An adapter of this name is bound to nothing."""
    return binding(lambda bound, adapter, config: EMPTY if adapter.name == name else bound)
