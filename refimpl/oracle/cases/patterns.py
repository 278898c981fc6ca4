"""rank_pattern and alpha_pattern of adapters that are drawn: what engines fuse differs, and the first key counts."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from ...config import EMBED, LM_HEAD, ModelConfig, Module, module_name

Number = TypeVar("Number", int, float)

FUSED = (("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"), ("q_a_proj", "kv_a_proj_with_mqa"))
FACTORS = (0.7, 2.5, 1.3, 0.4, 1.9, 3.1, 0.85, 2.2, 0.55, 1.6, 2.8)  # of alphas, beside the adapter's own
OFTEN = 0.5  # chance of a module that is in a pattern by chance, and of paths in one


def ranks(r: int, most: int, config: ModelConfig, chance: np.random.Generator) -> dict[str, int]:
    """Return other ranks, no two alike, for the second and the third of what is fused and for some other modules,
    where they are no more than `most`."""
    later = [name for group in _fused(config) for name in group[1:]]
    names = _patterned(later, config, chance)
    steps = chance.permutation(len(names)) + 1
    by_name = {name: r + int(step) for name, step in zip(names, steps, strict=True)}
    return {name: rank for name, rank in by_name.items() if rank <= most}


def alphas(r: int, config: ModelConfig, chance: np.random.Generator) -> dict[str, float]:
    """Return other alphas, no two alike, for the second of what is fused and for some other modules."""
    names = _patterned([group[1] for group in _fused(config)], config, chance)
    factors = chance.permutation(FACTORS)
    return {name: float(factor) * r for name, factor in zip(names, factors, strict=False)}


def by_layer(pattern: dict[str, Number], config: ModelConfig, chance: np.random.Generator) -> dict[str, Number]:
    """Return the pattern, half of the time with paths of single layers beside its names: one before them, which counts,
    with the value of another name, and one behind them, which does not, for the first that matches does (PEFT's
    get_pattern_key). Of experts the paths differ from one version of PEFT to another."""
    modules = [module for module in config.modules() if module[0] >= 0 and module[1] in pattern]
    if config.moe is not None or len(modules) < 2 or len(set(pattern.values())) < 2 or chance.random() >= OFTEN:
        return pattern
    first, last = (modules[i] for i in chance.permutation(len(modules))[:2])

    def path(module: Module) -> str:
        return module_name(module) if chance.random() < OFTEN else module_name(module).removeprefix("model.")

    def another(module: Module) -> Number:
        others = [value for value in pattern.values() if value != pattern[module[1]]]
        return others[int(chance.integers(len(others)))]

    return {path(first): another(first), **pattern, path(last): another(last)}


def _patterned(sure: Sequence[str], config: ModelConfig, chance: np.random.Generator) -> list[str]:
    """Return those of the sure ones that there are, the two ends, and each other module by chance.

    Two halves of one expert are one parameter for PEFT, with one rank and one scale: they are left out."""
    halves = ("gate_proj", "up_proj", "w1", "w3") if config.moe is not None else ()  # the last two are Mixtral's
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in (*config.layer_modules, EMBED[1], LM_HEAD[1])))
    sure = (*sure, EMBED[1], LM_HEAD[1])
    return [name for name in names if name not in halves and (name in sure or chance.random() < OFTEN)]


def _fused(config: ModelConfig) -> Sequence[tuple[str, ...]]:
    """Return the groups of modules that engines fuse, in which one rank or scale for all must show.

    Two halves of one expert are one parameter for PEFT, with one rank and one scale."""
    return FUSED if config.moe is None else FUSED[1:]
