"""target_parameters of PEFT: LoRA on a parameter that is no layer of its own, as the weights of all experts in one.

A module of ours has one parameter in the model, by whose dotted name PEFT selects it and looks up its rank and alpha:

    (3, "mlp.experts.7.up_proj")    model.layers.3.mlp.experts.gate_up_proj    one for all experts and both halves
    (3, "mlp.gate")                 model.layers.3.mlp.gate.weight             the router's, or that of any layer

The patterns of an Adapter's config are by module, whatever the file has: `patterns_with` writes them so, and back.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..adapter import ENDING, PeftConfig, pattern_value
from ..config import EMBED, LM_HEAD, ModelConfig, Module, Stacked, module_name
from .peft_config import selects

Value = TypeVar("Value", int, float)
# Projections of all experts with the expert as an axis, by the halves of their MLP: gate, up, down.
AXES = {"w1": 0, "gate_proj": 0, "w3": 1, "up_proj": 1, "w2": 2, "down_proj": 2}
# Without a base: the names below a layer of pairs for all experts, and of the modules that a layer of experts has.
UNPLACED = re.compile(r"(mlp|block_sparse_moe)\.(experts(\.[a-z]\w*)?|(in|out)put_linear)")
SPARSE = re.compile(
    rf"model\.layers\.(\d{{1,4}})\.({UNPLACED.pattern}|(mlp|block_sparse_moe)\.(experts\.\d+\.\w+|gate|router(\.\w+)?"
    r"|shared_experts?\.\w+|shared_expert_gate))"
)
Group = tuple[int, str]  # a layer and a pattern below it, for one module or for one of every expert


def stack_of(module: Module, base: ModelConfig) -> Stacked | None:
    """The tensor of all experts that an expert's module is a part of; None for any other module."""
    moe, name = base.moe, module[1]
    if moe is None or not name.startswith(f"{moe.expert}."):
        return None
    return next((stack for stack in moe.stacked if name.rpartition(".")[2] in stack.modules), None)


def packed_names(base: ModelConfig) -> dict[str, Module]:
    """What a base's experts and routers are called beside their modules' names: for all experts at once, and in the
    spelling of another version of transformers."""
    names: dict[str, Module] = {}
    moe = base.moe
    for layer in range(base.num_hidden_layers if moe else 0):
        assert moe is not None
        if not base.kind(layer).sparse:
            continue
        stacked = [name for stack in moe.stacked for name in spellings_of(stack.name, base)]
        below = {name.rpartition(".")[0] for name in stacked}
        below |= {f"{name}.base_layer" for name in below} | {f"{name}.{leaf}" for name in below for leaf in AXES}
        routers = [(other, ours) for other, ours in moe.spellings if ours not in stacked]
        spelled = {other.removesuffix(".weight"): ours.removesuffix(".weight") for other, ours in routers}
        names |= {f"model.layers.{layer}.{name}": (layer, name) for name in below}
        names |= {f"model.layers.{layer}.{other}": (layer, ours) for other, ours in spelled.items()}
    return names


def unplaced(name: str) -> Module | None:
    """The module that a dotted name is of, in a layer of experts of any base; None if it looks like none."""
    match = SPARSE.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def spellings_of(name: str, base: ModelConfig) -> tuple[str, ...]:
    """What a weight is called below a layer: in transformers 5, if that has another name for it, and as we do."""
    others = [other for other, ours in base.moe.spellings if ours == name] if base.moe else []
    return (*others, name)


def parameters_of(module: Module, base: ModelConfig | None) -> tuple[str, ...]:
    """The dotted names of the parameter that this module's weight is, or is in: as transformers 5 calls it first."""
    weight = f"{module_name(module)}.weight"
    if base is None or base.moe is None or module[0] < 0:
        return (weight,)
    layer = f"model.layers.{module[0]}."
    if stack := stack_of(module, base):
        return tuple(layer + name for name in spellings_of(stack.name, base))
    return tuple(layer + name for name in spellings_of(weight.removeprefix(layer), base))


def is_targeted(names: Iterable[str], parameter: str) -> bool:
    """Whether target_parameters names this parameter: by its full name, or the end of it from a dot on."""
    return any(parameter == name or parameter.endswith(f".{name}") for name in names)


def targeted_parameter(config: PeftConfig, module: Module, base: ModelConfig | None) -> str | None:
    """The name by which target_parameters selects a module, if it does."""
    if not config.target_parameters:
        return None
    return next((name for name in parameters_of(module, base) if is_targeted(config.target_parameters, name)), None)


def selects_module(config: PeftConfig, module: Module, base: ModelConfig | None) -> bool:
    """Whether PEFT puts a LoRA on a module, as a layer or as a parameter.

    With ensure_weight_tying, of two tied tables on both where target_modules names one."""
    tables = (EMBED, LM_HEAD)
    if config.ensure_weight_tying and module in tables and (base is None or base.tie_word_embeddings):
        return any(selects(config, module_name(table)) for table in tables)
    return selects(config, module_name(module)) or targeted_parameter(config, module, base) is not None


def group_of(module: Module, base: ModelConfig | None) -> Group:
    """The layer, and a pattern below it that matches the module; of an expert's, the same module of every expert."""
    if base and base.moe and (stack := stack_of(module, base)):
        names = stack.modules[0] if len(stack.modules) == 1 else f"({'|'.join(stack.modules)})"
        return module[0], rf"{re.escape(base.moe.expert)}\.\d+\.{names}"
    return module[0], re.escape(module_name(module).removeprefix(f"model.layers.{module[0]}."))


def patterns_with(
    pattern: Mapping[str, Value],
    default: Value,
    values: Mapping[Group, Value],
    samples: Mapping[Group, str],
    others: list[str],
) -> dict[str, Value]:
    """rank_pattern or alpha_pattern that gives each group its value, and leaves the `others`, dotted names, as before.

    samples: the dotted name of one member of each group. A group that has one value in all layers is one line."""
    kept = {
        key: value
        for key, value in pattern.items()
        if any(re.match(ENDING.replace("{}", key), name) or key == name for name in others)
    }
    written: dict[str, Value] = {}
    for below in dict.fromkeys(below for _, below in values):
        of_layers = {group: value for group, value in values.items() if group[1] == below}
        if all(value == pattern_value(kept, samples[group], default) for group, value in of_layers.items()):
            continue
        if len(set(of_layers.values())) == 1:
            written[below] = next(iter(of_layers.values()))
        else:
            written |= {rf"layers\.{layer}\.{below}": value for (layer, _), value in of_layers.items()}
    return written | kept
