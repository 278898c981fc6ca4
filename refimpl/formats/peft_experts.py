"""LoRA on a base with experts -> the config and tensors that PEFT 0.19 and later read (loading/peft_experts.py: 2).

All experts of a layer become one pair for a parameter. gate and up that share A, as they do if the file had them so,
keep its rank; others get a pair of both ranks together, B with two blocks, exactly what PEFT makes of them. Experts
without LoRA get zeros. A router, and a layer whose name PEFT 0.21 would take for an expert's (gate_proj of a shared
expert: peft issue 3711), are parameters as well.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..adapter import Adapter, LoraTensors, PeftConfig, lora_alpha_of
from ..adapter_slots import scale_of
from ..arrays import Array
from ..config import ModelConfig, Module, Stacked, module_name
from ..errors import AdapterError
from ..loading.peft_config import selects
from ..loading.peft_parameters import (
    Group,
    is_targeted,
    parameters_of,
    patterns_with,
    spellings_of,
    stack_of,
    targeted_parameter,
    unplaced,
)
from ..loading.peft_tensors import PREFIX

TAKEN_FOR_EXPERTS = ("gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj")
VERSION = "0.19.0"  # the first of PEFT with this layout, by which a reader knows it


@dataclass(frozen=True, eq=False)
class Written:
    """What becomes of one parameter: its pair in the file, and the rank and alpha that it has in the patterns."""

    A: Array
    B: Array
    rank: int
    alpha: float


def of_experts(adapter: Adapter) -> list[str]:
    """The dotted names of an adapter's modules that only layers of experts have."""
    return [name for name in map(module_name, adapter.lora) if unplaced(name)]


def with_parameters(adapter: Adapter, base: ModelConfig) -> tuple[Adapter, dict[str, Array]]:
    """The adapter that is left to be written layer by layer, its config as PEFT's file has it; and the other tensors.

    AdapterError for what PEFT has no form for: experts of one layer with different ranks or scales, DoRA on them."""
    moe, strange = base.moe, [module for module in adapter.lora if module not in base.modules()]
    if strange:
        raise AdapterError(f"adapter {adapter.name} has LoRA on {module_name(strange[0])}, which the base has not")
    apart = {module for module in adapter.lora if targeted_parameter(adapter.config, module, base)}
    apart |= {module for module in adapter.lora if stack_of(module, base) or (moe and module[1] == moe.router)}
    words = {module: module[1].rpartition(".")[2] for module in adapter.lora if moe}
    others = {module for module, word in words.items() if word in TAKEN_FOR_EXPERTS and module not in apart}
    extra = [module for module, lora in adapter.lora.items() if not (lora.bias is None and lora.magnitude is None)]
    if extra and not apart:
        return adapter, {}
    if extra:
        kind = "lora_bias" if adapter.lora[extra[0]].bias is not None else "DoRA"
        raise AdapterError(
            f"adapter {adapter.name} has {kind} on {module_name(extra[0])}, which PEFT has not beside LoRA on experts"
        )
    written: dict[str, Written] = {}
    for module in sorted(apart | others):
        parameter = parameters_of(module, base)[0]
        if parameter not in written:
            stack = stack_of(module, base)
            written[parameter] = of_stack(adapter, module[0], stack, base) if stack else of_one(adapter, module)
    plain = {module: lora for module, lora in adapter.lora.items() if module not in apart | others}
    config = in_patterns(adapter.config, written, plain, base)
    return replace(adapter, lora=plain, config=config), named(written, base)


def of_one(adapter: Adapter, module: Module) -> Written:
    """One layer's pair, as it is."""
    lora = adapter.lora[module]
    return Written(lora.A, lora.B, len(lora.A), lora_alpha_of(adapter.config, module))


def of_stack(adapter: Adapter, layer: int, stack: Stacked, base: ModelConfig) -> Written:
    """One pair for a parameter of all experts."""
    moe = base.moe
    assert moe is not None
    modules = [[(layer, f"{moe.expert}.{number}.{name}") for name in stack.modules] for number in range(moe.experts)]
    pairs = [[adapter.lora.get(module) for module in halves] for halves in modules]
    present = [module for halves in modules for module in halves if module in adapter.lora]
    ranks = [one_rank(adapter, [halves[j] for halves in modules]) for j in range(len(stack.modules))]
    if len({scale_of(adapter.config, module, len(adapter.lora[module].A)) for module in present}) > 1:
        raise AdapterError(f"adapter {adapter.name}: {module_name(present[0])} and its like have different scales")
    kinds = {x.dtype for module in present for x in (adapter.lora[module].A, adapter.lora[module].B)}
    if len(kinds) > 1:
        names = " and ".join(sorted(kind.name for kind in kinds))
        raise AdapterError(f"adapter {adapter.name}: {module_name(present[0])} and its like are {names}")
    shared = all(shares_A(halves) for halves in pairs)
    rank = max(ranks) if shared else sum(ranks)
    starts = [0] * len(ranks) if shared else [sum(ranks[:j]) for j in range(len(ranks))]
    d_out, d_in = base.shape(modules[0][0])
    A = np.zeros((moe.experts, rank, d_in), kinds.pop())
    B = np.zeros((moe.experts, d_out * len(ranks), rank), A.dtype)
    for expert, halves in enumerate(pairs):
        for j, lora in enumerate(halves):
            if lora is not None:
                columns = slice(starts[j], starts[j] + ranks[j])
                A[expert, columns], B[expert, stack.rows(j, B.shape[1]), columns] = lora.A, lora.B
    first = present[0]
    grown = rank / len(adapter.lora[first].A)
    alpha = lora_alpha_of(adapter.config, first) * (math.sqrt(grown) if adapter.config.use_rslora else grown)
    return Written(A.reshape(-1, d_in), B.transpose(1, 2, 0).reshape(B.shape[1], -1), rank, alpha)


def one_rank(adapter: Adapter, modules: Iterable[Module]) -> int:
    """The rank of one projection in all experts; 0 where none has LoRA."""
    ranks = {len(adapter.lora[module].A): module for module in modules if module in adapter.lora}
    if len(ranks) > 1:
        names = " and ".join(f"{module_name(module)} has rank {rank}" for rank, module in sorted(ranks.items()))
        raise AdapterError(f"adapter {adapter.name}: {names}, and PEFT has one for all experts")
    return next(iter(ranks), 0)


def shares_A(halves: list[LoraTensors | None]) -> bool:
    """Whether one A serves all halves of an expert, or there is nothing to serve."""
    first = halves[0]
    if first is None or any(lora is None for lora in halves):
        return all(lora is None for lora in halves)
    return all(lora is not None and np.array_equal(first.A, lora.A) for lora in halves)


def named(written: Mapping[str, Written], base: ModelConfig) -> dict[str, Array]:
    """The pairs under PEFT's names. Of two parameters of one module the first is inside the other: base_layer."""
    tensors = {}
    order = [name for stack in base.moe.stacked for name in spellings_of(stack.name, base)] if base.moe else []
    of_modules: dict[str, list[str]] = {}
    for parameter in written:
        of_modules.setdefault(parameter.rpartition(".")[0], []).append(parameter)
    for module, parameters in of_modules.items():
        if len(parameters) > 1:
            parameters = sorted(parameters, key=lambda parameter: -order.index(below(parameter)))
        for depth, parameter in enumerate(parameters):
            name = f"{PREFIX}{module}{'.base_layer' * depth}"
            tensors[f"{name}.lora_A.weight"] = written[parameter].A
            tensors[f"{name}.lora_B.weight"] = written[parameter].B
    return tensors


def below(parameter: str) -> str:
    """The parameter's name below its layer."""
    return re.sub(r"^model\.layers\.\d+\.", "", parameter)


def in_patterns(
    config: PeftConfig, written: Mapping[str, Written], plain: Mapping[Module, Any], base: ModelConfig
) -> PeftConfig:
    """The config by which PEFT puts a LoRA on these parameters, with their ranks and alphas, and on other layers."""
    layers = {parameter: re.match(r"model\.layers\.(\d+)\.", parameter) for parameter in written}
    groups: dict[str, Group] = {
        name: (int(layer[1]) if layer else -1, re.escape(below(name))) for name, layer in layers.items()
    }
    samples = {group: parameter for parameter, group in groups.items()}
    names = [module_name(module) for module in plain]
    ranks = {groups[parameter]: pair.rank for parameter, pair in written.items()}
    alphas = {groups[parameter]: pair.alpha for parameter, pair in written.items()}
    return replace(
        config,
        rank_pattern=patterns_with(config.rank_pattern, config.r, ranks, samples, names),
        alpha_pattern=patterns_with(config.alpha_pattern, config.lora_alpha, alphas, samples, names),
        target_parameters=parameter_names(config, written, base),
        target_modules=layer_names(config, names, base),
        peft_version=VERSION if written else "",
    )


def parameter_names(config: PeftConfig, written: Mapping[str, Written], base: ModelConfig) -> tuple[str, ...]:
    """target_parameters: those of the config, if they mean the same; else names without a layer where all have it."""
    every = {parameters_of(module, base)[0] for module in base.modules()}
    if config.target_parameters and {p for p in every if is_targeted(config.target_parameters, p)} == written.keys():
        return config.target_parameters
    names: dict[str, None] = {}
    for parameter in written:
        short = below(parameter)
        complete = {p for p in every if is_targeted((short,), p)} <= written.keys()
        names[short if complete else parameter] = None
    return tuple(names)


def layer_names(config: PeftConfig, names: list[str], base: ModelConfig) -> tuple[str, ...]:
    """target_modules for these layers: those of the config that name no parameter, if they mean the same."""
    if isinstance(config.target_modules, tuple):
        kept = tuple(n for n in config.target_modules if n.rpartition(".")[2] not in TAKEN_FOR_EXPERTS)
        fewer = replace(config, target_modules=kept)
        if {*names} == {name for name in map(module_name, base.modules()) if selects(fewer, name)}:
            return kept
    return tuple(names)
