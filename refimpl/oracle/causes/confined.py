"""The same adapters, confined to some modules: B and its bias are 0 at every other one.

Of two mistakes at different modules a request shows one alone. Nothing else of an adapter changes, neither its config
nor which tensors it has, so that a bug which depends on what modules it is on stays the bug that it is.
"""

import warnings
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...adapter import Adapter, LoraTensors
from ...config import EMBED, LM_HEAD, ModelConfig, Module
from ...errors import AdapterWarning
from ..cases.testbed import Testbed, save_adapters

Group = frozenset[Module]


def groups(config: ModelConfig) -> dict[str, Group]:
    """Return the modules that adapters are confined to in turn, by name, few first: what engines fuse is together."""
    words = {name: name.rpartition(".")[2] for name in config.layer_modules}  # of all experts alike
    fused = {word: ", ".join(some) for some in (config.qkv, config.gate_up) for word in some}
    parts: dict[str, list[Module]] = {EMBED[1]: [], LM_HEAD[1]: []}
    for name in reversed(words):
        parts.setdefault(fused.get(words[name], words[name]), [])
    for module in config.modules():
        word = words.get(module[1], module[1])
        parts[fused.get(word, word)].append(module)
    return {name: frozenset(part) for name, part in parts.items() if part}


def confined(adapter: Adapter, modules: Collection[Module]) -> Adapter:
    """Return the adapter without its effect at any other module."""

    def silent(lora: LoraTensors) -> LoraTensors:
        bias = None if lora.bias is None else np.zeros_like(lora.bias)
        return LoraTensors(lora.A, np.zeros_like(lora.B), bias, lora.magnitude)

    return replace(adapter, lora={at: one if at in modules else silent(one) for at, one in adapter.lora.items()})


def confined_testbed(testbed: Testbed, name: str, modules: Collection[Module], work: Path) -> Testbed:
    """Return the testbed with every adapter confined, under its own key; the folders are written below work/NAME."""
    adapters = [replace(confined(adapter, modules), name=key) for key, adapter in testbed.adapters.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdapterWarning)  # that every B of some is 0
        paths = save_adapters(adapters, work / name, testbed.dtype, testbed.model.config)
        return Testbed.load(testbed.folder, testbed.model, paths)
