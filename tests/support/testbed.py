"""A testbed so small that a scenario takes milliseconds: two narrow layers, five adapters, and two near-duplicates."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from refimpl.config import ModelConfig
from refimpl.engines.ours import CAPABILITIES
from refimpl.oracle.cases.near_duplicates import near_duplicates_of
from refimpl.oracle.cases.testbed import Testbed
from refimpl.oracle.cases.variety import random_adapters
from refimpl.synthetic.models import random_model

BLOCK = 8  # of our engine
CONFIG = ModelConfig(40, 20, 28, 2, 4, 2, 8, max_position_embeddings=160)
ADAPTERS = 5


@functools.cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def small_testbed(dtype: str = "float32", adapters: int = ADAPTERS) -> Testbed:
    """The same one for all tests; its folders go when Python ends."""
    return _testbed(dtype, adapters)


@functools.cache
def _testbed(dtype: str, adapters: int) -> Testbed:
    rng = np.random.default_rng(3)
    folder = Path(_root().name) / f"{dtype}-{adapters}"
    model = random_model(CONFIG, rng, dtype)
    drawn_adapters = random_adapters(model, rng, CAPABILITIES, adapters, combined=False)
    if adapters == ADAPTERS:
        drawn_adapters += near_duplicates_of(drawn_adapters[0], rng)
    return Testbed.of(folder, model, drawn_adapters)
