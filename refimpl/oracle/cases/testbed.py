"""The testbed of a campaign: one base and the adapters that its cases use, on disk for the engine, loaded for us."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...adapter import Adapter, LoraTensors
from ...arrays import Array
from ...engines.interface import Capabilities, Settings
from ...formats.hf import save_model
from ...formats.peft import save_adapter
from ...loading.adapter_folder import load_adapter
from ...loading.model_folder import base_folder, load_model
from ...weights import Linear, Model
from .near_duplicates import near_duplicates_of
from .synthetic import random_adapters, random_config, random_model


@dataclass(frozen=True, eq=False)
class Testbed:
    """One base and its adapters."""

    __test__ = False  # pytest: no class of tests, whatever it is called

    folder: Path  # the base, as the engine loads it
    model: Model  # the same in the type that the engine is asked to compute in
    exact: Model  # the very same numbers in float64
    paths: Mapping[str, Path]  # of every adapter that may be loaded, by its key
    adapters: Mapping[str, Adapter]

    @property
    def dtype(self) -> str:
        """What the engine is asked to compute in."""
        return self.model.dtype

    @cached_property
    def wide(self) -> dict[str, Adapter]:
        """The adapters in float64; every mutant runs with them."""
        return {key: _wide_adapter(adapter) for key, adapter in self.adapters.items()}

    def in_dtype(self, dtype: str) -> "Testbed":
        """The same testbed for an engine that computes in another type: its weights are rounded to it first."""
        if dtype == self.dtype:
            return self
        model = load_model(self.folder, dtype)
        return replace(self, model=model, exact=in_float64(model))


def build(
    model: str,
    dtype: str,
    seed: int,
    work: Path,
    capabilities: Capabilities,
    adapters: Mapping[str, Path] | None = None,
    count: int = 5,
) -> Testbed:
    """model: "tiny", "random", or a folder. adapters: the user's own; without them `count` are made, beside two of the
    embedded model's voices, and with two relatives where an engine can exchange adapters. What is made is written
    under `work`, in `dtype`, so that no engine rounds it."""
    rng = np.random.default_rng([seed, 4])
    work = work / "testbeds" / f"{Path(model).name}-{dtype}-{seed}-{count}"  # a campaign that is resumed finds its own
    if model == "random":
        folder = work / "model"
        base = random_model(random_config(rng, capabilities, turn=seed), rng, dtype)
        if not folder.exists():
            save_model(base, folder)
    else:
        folder = base_folder(model)
    ours = load_model(folder, dtype)
    paths = {name: Path(p) for name, p in (adapters or {}).items()}
    if not paths:
        if model == "tiny":
            from ... import tiny

            paths |= dict(list(tiny.VOICES.items())[:2])
        synthetic = random_adapters(ours, rng, capabilities, count)
        if "load" in capabilities.operations:
            synthetic += near_duplicates_of(synthetic[0], rng)
        for adapter in synthetic:
            paths[adapter.name] = work / "adapters" / adapter.name
            if not paths[adapter.name].exists():
                save_adapter(adapter, paths[adapter.name], dtype)
    loaded = {name: load_adapter(path, ours.config, name) for name, path in paths.items()}
    return Testbed(folder, ours, in_float64(ours), paths, loaded)


def settings(testbed: Testbed, **changes: Any) -> Settings:
    """Return the settings with which an engine is started for this testbed."""
    ranks = [lora.A.shape[0] for adapter in testbed.adapters.values() for lora in adapter.lora.values()]
    return replace(
        Settings(
            testbed.folder,
            testbed.dtype,
            max_adapters=len(testbed.adapters) + 1,
            max_rank=max(ranks, default=8),
            max_length=min(128, testbed.model.config.max_position_embeddings),
            modules=tuple(dict.fromkeys(name for adapter in testbed.adapters.values() for _, name in adapter.lora)),
        ),
        **changes,
    )


def in_float64(model: Model) -> Model:
    """The same numbers, held in float64. Nothing is rounded."""

    def wide(x: Any) -> Any:
        if isinstance(x, Linear):
            return Linear(wide(x.weight), None if x.bias is None else wide(x.bias))
        return x.astype(np.float64) if isinstance(x, Array) else x

    layers = tuple(
        replace(layer, **{field.name: wide(getattr(layer, field.name)) for field in dataclasses.fields(layer)})
        for layer in model.layers
    )
    embed = wide(model.embed_tokens)
    tied = model.lm_head.weight is model.embed_tokens
    head = Linear(embed) if tied else wide(model.lm_head)
    return replace(model, embed_tokens=embed, layers=layers, norm=wide(model.norm), lm_head=head, dtype="float64")


def _wide_adapter(adapter: Adapter) -> Adapter:
    """The same numbers in float64."""

    def wide(x: Any) -> Any:
        return None if x is None else x.astype(np.float64)

    lora = {module: LoraTensors(wide(lora.A), wide(lora.B), wide(lora.bias)) for module, lora in adapter.lora.items()}
    return replace(adapter, lora=lora)
