"""What adapters are once they are bound, in float64: A, B and scale of every module, and whole layers that they bring
along; and what each known bug of binding makes of them."""

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache

from ...adapter_slots import LoraWeights
from ...arrays import Array
from ...config import Module
from ...errors import LoracleError
from ...ops import NUMPY, Ops
from ..bugs import IN_SEQUENCES, mutants_for
from ..bugs.registry import all_bugs
from ..cases.testbed import Testbed
from .mix_up import NOBODY

Weights = Mapping[str, Mapping[Module, LoraWeights]]

BINDING = {"bind_adapter", "adapter_scale"}  # the steps that say what an adapter becomes
UNCHECKED = {"embed", "lora_delta", "check_batch"}  # those that every mutant replaces, so that nothing stops it
PARAMETRISED_UP_TO = 200_000  # numbers of an adapter for which bugs are tried at every value of their parameters


@lru_cache(maxsize=4)
def bound_weights(testbed: Testbed) -> Weights:
    """Return A, B and scale of every module of every adapter, in float64. DoRA is left out: its delta is no product."""
    return {NOBODY: {}} | {key: _plain(NUMPY, testbed, key) for key in testbed.wide}


@lru_cache(maxsize=4)
def saved_layers(testbed: Testbed) -> Mapping[str, Mapping[Module, Array]]:
    """Return the whole layers that each adapter brings along, less the base's; those of another size are left out."""
    model = testbed.exact
    return {NOBODY: {}} | {
        key: {
            module: layer - model.linear(module).weight
            for module, layer in adapter.replaced.items()
            if layer.shape == model.linear(module).weight.shape
        }
        for key, adapter in testbed.wide.items()
    }


@lru_cache(maxsize=16)
def binding_bugs(testbed: Testbed, key: str) -> dict[str, str]:
    """Return what every known bug of binding does, by its name: of a large adapter only the mutants."""
    numbers = sum(lora.A.size + lora.B.size for lora in testbed.wide[key].lora.values())
    return _binding_bugs(testbed, numbers <= PARAMETRISED_UP_TO)


@lru_cache(maxsize=4)
def _binding_bugs(testbed: Testbed, parametrised: bool) -> dict[str, str]:
    bugs = all_bugs(testbed) if parametrised else mutants_for(list(testbed.paths))
    words = {}
    for name, bug in bugs.items():
        ops = bug.make()
        changed = {field.name for field in fields(Ops) if getattr(ops, field.name) is not getattr(NUMPY, field.name)}
        if bug.needs not in IN_SEQUENCES and not bug.scales and changed & BINDING and changed <= BINDING | UNCHECKED:
            words[name] = bug.what
    return words


@lru_cache(maxsize=4096)
def bound_by(testbed: Testbed, key: str, name: str) -> Mapping[Module, LoraWeights]:
    """Return what a known bug makes of an adapter."""
    try:
        return _plain(all_bugs(testbed)[name].make(), testbed, key)
    except LoracleError:  # experts' weights that such a bug makes different cannot be stacked: it is not in this one
        return bound_weights(testbed)[key]


def _plain(ops: Ops, testbed: Testbed, key: str) -> Mapping[Module, LoraWeights]:
    bound = ops.bind_adapter(testbed.wide[key], testbed.exact.config, ops.adapter_scale)
    return {module: lora for module, lora in bound.lora.items() if lora.magnitude is None}
