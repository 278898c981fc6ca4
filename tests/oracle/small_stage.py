"""A testbed so small that a sequence takes milliseconds: two narrow layers, five adapters, and two near-duplicates."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from refimpl.config import ModelConfig
from refimpl.engines.ours import CAPABILITIES
from refimpl.formats.hf import save_model
from refimpl.formats.peft import save_adapter
from refimpl.loading.adapter_folder import load_adapter
from refimpl.oracle.cases.near_duplicates import near_duplicates_of
from refimpl.oracle.cases.synthetic import random_adapters, random_model
from refimpl.oracle.cases.testbed import Testbed, in_float64

BLOCK = 8  # of our engine
CONFIG = ModelConfig(40, 20, 28, 2, 4, 2, 8, max_position_embeddings=160)
ADAPTERS = 5


@functools.cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def small_stage(dtype: str = "float32", adapters: int = ADAPTERS) -> Testbed:
    """The same one for all tests; its folders go when Python ends."""
    return _testbed(dtype, adapters)


@functools.cache
def _testbed(dtype: str, adapters: int) -> Testbed:
    rng = np.random.default_rng(3)
    folder = Path(_root().name) / f"{dtype}-{adapters}"
    model = random_model(CONFIG, rng, dtype)
    save_model(model, folder / "model")
    paths = {}
    adapters_of_seed = random_adapters(model, rng, CAPABILITIES, adapters)
    for adapter in adapters_of_seed + (near_duplicates_of(adapters_of_seed[0], rng) if adapters == ADAPTERS else []):
        paths[adapter.name] = folder / "adapters" / adapter.name
        save_adapter(adapter, paths[adapter.name], dtype)
    loaded = {key: load_adapter(path, CONFIG, key) for key, path in paths.items()}
    return Testbed(folder / "model", model, in_float64(model), paths, loaded)
