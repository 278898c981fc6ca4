"""The config of an adapter that was made of others: which modules it has, of which rank and scale."""

from collections.abc import Mapping
from dataclasses import replace

from ..adapter import PeftConfig
from ..config import Module, module_name
from ..loading.adapter_pairs import config_of
from .merged_weights import Terms


def combined_config(terms: Terms, modules: Mapping[Module, tuple[int, float]]) -> PeftConfig:
    """A config for these modules, each with this rank and scale: alpha is rank * scale, and never rsLoRA's.

    It selects modules as the adapters do, if they do it in one way; else each by its full name."""
    pairs = {module: (rank, rank * scale) for module, (rank, scale) in modules.items()}
    config = config_of(pairs, 1 + max(layer for layer, _ in modules))
    first = terms[0][0].config
    configs = [adapter.config for adapter, _ in terms]
    if any(where(config) != where(first) for config in configs):
        return replace(config, target_modules=tuple(module_name(module) for module in modules))
    targets: tuple[str, ...] | str
    if isinstance(first.target_modules, str):
        targets = "|".join(f"({text})" for text in dict.fromkeys(str(one.target_modules) for one in configs))
    else:
        targets = tuple(dict.fromkeys(name for one in configs for name in one.target_modules))
    return replace(
        config,
        target_modules=targets,
        exclude_modules=first.exclude_modules,
        layers_to_transform=first.layers_to_transform,
        layers_pattern=first.layers_pattern,
    )


def where(config: PeftConfig) -> tuple[object, ...]:
    """What else than names decides which modules are selected."""
    kind = isinstance(config.target_modules, str)
    return kind, config.exclude_modules, config.layers_to_transform, config.layers_pattern
