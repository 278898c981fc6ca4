"""The testbed of a campaign: one base and the adapters that its cases use, on disk for the engine, loaded for us."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...adapter import Adapter, LoraTensors
from ...arrays import Array
from ...config import ModelConfig
from ...engines.interface import Capabilities, Settings
from ...formats.hf import save_model
from ...formats.peft import save_adapter
from ...loading.adapter_folder import load_adapter
from ...loading.model_folder import base_folder, load_model
from ...synthetic.models import random_model
from ...weights import Layer, Linear, Model
from .family_base import save_family_base
from .near_duplicates import near_duplicates_of
from .variety import random_adapters, random_config

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Testbed:
    """One base and its adapters."""

    __test__ = False  # for pytest, which takes every Test... in the files of who imports it for a class of tests

    folder: Path  # the base, as the engine loads it
    model: Model  # the same in the type that the engine is asked to compute in
    exact: Model  # the very same numbers in float64
    paths: Mapping[str, Path]  # of every adapter that may be loaded, by its key
    adapters: Mapping[str, Adapter]

    @classmethod
    def load(cls, folder: Path, model: Model, paths: Mapping[str, Path]) -> "Testbed":
        """Return the testbed of a base, loaded from `folder`, and of the adapters in these folders, by key."""
        adapters = {key: load_adapter(path, model, key) for key, path in paths.items()}
        return cls(folder, model, in_float64(model), paths, adapters)

    @classmethod
    def of(cls, root: Path, model: Model, adapters: Sequence[Adapter]) -> "Testbed":
        """Return the testbed of a base and adapters that are in no folder yet: they are written to root/model and
        root/adapters/NAME in the type of the base, so that no engine rounds them."""
        folder = save_once(save_model, model, root / "model")
        paths = save_adapters(adapters, root / "adapters", model.dtype, model.config)
        return cls.load(folder, load_model(folder, model.dtype), paths)

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
    family: str = "",
) -> Testbed:
    """Return the testbed of a campaign.

    model: "tiny", "random", or a folder. family: of a random base, by its model_type; else it is a Llama or, for an
    engine that has a window, a Mistral. adapters: the user's own; without them `count` are drawn, beside two of the
    embedded model's voices, and with two near-duplicates where an engine can exchange adapters. What is drawn is
    written under `work`, in `dtype`, so that no engine rounds it."""
    rng = np.random.default_rng([seed, 4])
    work = (
        work / "testbeds" / "-".join([Path(model).name, *filter(None, [family]), dtype, f"{seed}-{count}"])
    )  # a campaign that is resumed finds its own
    if model == "random" and family:
        save = partial(save_family_base, family, np.random.default_rng([seed, 5]), dtype)
        folder = save_once(lambda _, path: save(path), None, work / "model")
    elif model == "random":
        folder = save_once(save_model, drawn_model(rng, capabilities, seed, dtype), work / "model")
    else:
        folder = base_folder(model)
    ours = load_model(folder, dtype)
    paths = {name: Path(path) for name, path in (adapters or {}).items()}
    if not paths:
        if model == "tiny":
            from ... import tiny

            paths |= dict(list(tiny.VOICES.items())[:2])
        synthetic = drawn_adapters(ours, rng, capabilities, count)
        paths |= save_adapters(synthetic, work / "adapters", dtype, ours.config)
    return Testbed.load(folder, ours, paths)


def drawn_model(rng: np.random.Generator, capabilities: Capabilities, seed: int, dtype: str) -> Model:
    """Return a random Llama or Mistral, the one of this seed."""
    return random_model(random_config(rng, capabilities, turn=seed), rng, dtype)


def drawn_adapters(base: Model, rng: np.random.Generator, capabilities: Capabilities, count: int) -> list[Adapter]:
    """Return `count` random adapters for the base, and two near-duplicates where an engine can exchange adapters."""
    adapters = random_adapters(base, rng, capabilities, count)
    return adapters + (near_duplicates_of(adapters[0], rng) if "load" in capabilities.operations else [])


def save_adapters(
    adapters: Sequence[Adapter], root: Path, dtype: str, config: ModelConfig | None = None
) -> dict[str, Path]:
    """Write each adapter into root/NAME/adapter, in this type. Return the folders by the names.

    The last part of the path is that of every other one, as in a folder of training runs: what is kept by it is mixed
    up. config: of the base, which adapters on experts need."""
    save = partial(save_adapter, dtype=dtype, config=config)
    return {adapter.name: save_once(save, adapter, root / adapter.name / "adapter") for adapter in adapters}


def save_once(save: Callable[[T, Path], Any], item: T, folder: Path) -> Path:
    """Write the item into the folder unless a campaign that is resumed has done so. Return the folder."""
    if not folder.exists():
        save(item, folder)
    return folder


def settings(testbed: Testbed, **changes: Any) -> Settings:
    """Return the settings with which an engine is started for this testbed."""
    adapters = testbed.adapters.values()
    ranks = [lora.A.shape[0] for adapter in adapters for lora in adapter.lora.values()]
    # Engines take it for what adapter_config.json says, of modules too that the adapter is not on.
    ranks += [rank for adapter in adapters for rank in (adapter.config.r, *adapter.config.rank_pattern.values())]
    return replace(
        Settings(
            testbed.folder,
            testbed.dtype,
            max_adapters=len(testbed.adapters) + 1,
            max_rank=max(ranks, default=8),
            max_length=min(128, testbed.model.config.max_position_embeddings),
            modules=tuple(dict.fromkeys(name for adapter in adapters for _, name in adapter.lora)),
        ),
        **changes,
    )


def in_float64(model: Model) -> Model:
    """The same numbers, held in float64. Nothing is rounded."""

    def wide(x: Any) -> Any:
        if isinstance(x, Linear):
            return Linear(wide(x.weight), None if x.bias is None else wide(x.bias))
        return _wide(x) if isinstance(x, Array) else x

    layers = tuple(
        Layer(
            {name: wide(weight) for name, weight in layer.norms.items()},
            {name: wide(linear) for name, linear in layer.linears.items()},
            {name: wide(vector) for name, vector in layer.vectors.items()},
        )
        for layer in model.layers
    )
    embed = wide(model.embed_tokens)
    tied = model.lm_head.weight is model.embed_tokens
    head = Linear(embed) if tied else wide(model.lm_head)
    return replace(model, embed_tokens=embed, layers=layers, norm=wide(model.norm), lm_head=head, dtype="float64")


def _wide_adapter(adapter: Adapter) -> Adapter:
    """The same numbers in float64."""
    lora = {
        module: LoraTensors(_wide(lora.A), _wide(lora.B), _wide(lora.bias), _wide(lora.magnitude))
        for module, lora in adapter.lora.items()
    }
    return replace(adapter, lora=lora)


def _wide(x: Any) -> Any:
    """An array in float64, and read-only as those of a folder are: what is not takes another form of product."""
    if x is None:
        return None
    wide = x.astype(np.float64)
    wide.flags.writeable = False
    return wide
