"""The scope of a bug: a mutant in some modules, some layers or some steps, and the right steps everywhere else.

The mutants go wrong everywhere. A real bug often does in one module, or in decode steps alone. Any mutant of how LoRA
is applied can be scoped: both forms of every adapter are loaded, the right one under names of its own, and each module
and each row takes one of the two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from ...adapter import Adapter
from ...adapter_slots import AdapterSlots, BoundAdapter, bind_adapter
from ...arrays import Array, Precision
from ...config import ATTENTION_MODULES, LAYER_MODULES, MLP_MODULES, ModelConfig, Module
from ...ops import NUMPY, Ops
from ...plans import Adapters, LoraMapping
from . import Mutant
from .steps import Plan, Scale

RIGHT = "right form of "  # before a module's name: where the right weights are kept

# The steps that decide how LoRA is applied. Some mutants only look at the positions; those that change them are of
# class H. `but` replaces `embed` as well, by one that does the same.
OF_LORA = frozenset(
    ("adapter_scale", "bind_adapter", "lora_mapping", "lora_delta", "embed", "positions", "check_batch")
)


@dataclass(frozen=True)
class Scope:
    """Some modules, and some rows of a batch."""

    name: str
    modules: Callable[[Module], bool] = lambda module: True
    decode: bool | None = None  # only in decode steps, only in prompts, or in both

    def rows(self, computed: Sequence[int], lengths: Sequence[int]) -> Array:
        """Return which rows of a batch are in scope: [tokens] of bool."""
        steps = [n == 1 and before > 0 for before, n in zip(computed, lengths, strict=True)]
        meant = [self.decode is None or step == self.decode for step in steps]
        return np.repeat(np.array(meant, bool), lengths)


def scopes_of(config: ModelConfig) -> list[Scope]:
    """A half of a layer, a module, a layer; decode steps, prompts."""
    scopes = [
        Scope("attention", lambda one: one[1] in ATTENTION_MODULES),
        Scope("mlp", lambda one: one[1] in MLP_MODULES),
    ]
    scopes += [_of_modules(name) for name in LAYER_MODULES]
    scopes += [_of_layer(i) for i in range(config.num_hidden_layers)]
    return [*scopes, Scope("decode", decode=True), Scope("prompts", decode=False)]


def small_scopes_of(config: ModelConfig) -> list[Scope]:
    """One module of one layer; two modules."""
    modules = [_of_module((layer, name)) for layer in range(config.num_hidden_layers) for name in LAYER_MODULES]
    return modules + [_of_modules(*pair) for pair in combinations(LAYER_MODULES, 2)]


def _of_modules(*modules: str) -> Scope:
    return Scope("+".join(modules), lambda one: one[1] in modules)


def _of_layer(layer: int) -> Scope:
    return Scope(f"layer {layer}", lambda one: one[0] == layer)


def _of_module(module: Module) -> Scope:
    return Scope(f"layers.{module[0]}.{module[1]}", lambda one: one == module)


def can_be_scoped(mutant: Mutant) -> bool:
    """Is it LoRA alone that the mutant applies otherwise? A wrong position is wrong in every module."""
    ops = mutant.make()
    changed = {name for name in ops.__dataclass_fields__ if getattr(ops, name) is not getattr(NUMPY, name)}
    return changed <= OF_LORA and mutant.family != "H"


def scoped(mutant: Mutant, scope: Scope) -> Mutant:
    """Return the mutant in this scope alone."""
    name, what = f"{mutant.name} @ {scope.name}", f"{mutant.what}; in {scope.name} alone"
    return replace(mutant, name=name, what=what, make=Scoped(mutant, scope))


class Scoped:
    """Makes the mutant's backend for this scope."""

    def __init__(self, mutant: Mutant, scope: Scope) -> None:
        self.mutant, self.scope = mutant, scope
        self.arrival = getattr(mutant.make, "arrival", False)  # the order of its batches (engines/ours.py)

    def __call__(self) -> Ops:
        return scoped_ops(self.mutant.make(), self.scope)


def scoped_ops(wrong: Ops, scope: Scope) -> Ops:
    """The wrong steps in this scope, NUMPY's elsewhere."""
    meant: list[Array] = []  # which rows of the batch
    plan: list[LoraMapping] = []  # the right one
    started: list[Sequence[int]] = []

    def positions(computed: Sequence[int], lengths: Sequence[int]) -> Array:
        started[:] = [computed]
        return wrong.positions(computed, lengths)

    def rows(per_request: Sequence[Adapters], lengths: Sequence[int]) -> Plan:
        computed = started[0] if started and len(started[0]) == len(lengths) else [0] * len(lengths)
        meant[:] = [scope.rows(computed, lengths)]
        plan[:] = [LoraMapping.of(*NUMPY.lora_mapping(per_request, lengths))]
        return wrong.lora_mapping(per_request, lengths)

    def bind(adapter: Adapter, config: ModelConfig, scale: Scale) -> BoundAdapter:
        bad, good = wrong.bind_adapter(adapter, config, scale), bind_adapter(adapter, config)
        kept = {(layer, RIGHT + name): lora for (layer, name), lora in good.lora.items()}
        return replace(good, lora={**bad.lora, **kept})

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        all_tokens = bool(plan) and len(plan[0].adapter_ids) == len(mapping.adapter_ids)  # the lm_head may see fewer
        right, right_module = y.copy(), (module[0], RIGHT + module[1])
        NUMPY.lora_delta(right, x, right_module, adapters, plan[0] if all_tokens else mapping, p)
        if not scope.modules(module):
            y[:] = right
            return
        wrong.lora_delta(y, x, module, adapters, mapping, p)
        if all_tokens and meant:
            y[~meant[0]] = right[~meant[0]]

    return replace(wrong, positions=positions, lora_mapping=rows, bind_adapter=bind, lora_delta=delta)
