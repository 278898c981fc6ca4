"""What the scripts of engines in an environment of their own share: one with a case's adapter, and what it answered."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import adapter_cases as cases
import numpy as np
import pytest
from showing import Shown, compared

import refimpl
from refimpl.engines import registry
from refimpl.engines.environments import missing
from refimpl.engines.interface import Engine, EngineRequest, EngineResponse, Settings
from refimpl.engines.recipes import Recipe

LONG = tuple(np.random.default_rng(4).integers(3, 96, 40).tolist())  # more than a block of 32


@contextmanager
def started(name: str, recipe: Recipe, case: cases.Case, **options: str) -> Iterator[Engine]:
    """It with the case's base, and its adapter as `a`. Skips where it is not installed."""
    if why := missing(recipe):
        pytest.skip(why)
    settings = Settings(case.base, max_length=48, max_requests=2, prefix_caching="prefix_cache" in options)
    engine = registry.make(name, {key.replace("_", "-"): value for key, value in options.items()})
    try:
        engine.start(settings)
        engine.load("a", case.folder)
        yield engine
    finally:
        engine.close()


def ask(engine: Engine, *requests: EngineRequest) -> EngineResponse:
    """The answer to the last of these, one after another."""
    return [engine.run([request])[0] for request in requests][-1]


def after_long(case: cases.Case, what: str, got: EngineResponse, *instead: Path | None) -> Shown:
    """Its first row after LONG, where it shows a token, beside ours with the adapter, and with the one, or None, that
    the cause predicts."""
    assert got.top is not None, got.error
    tokens, values = np.array(list(got.top[0])), np.array(list(got.top[0].values()))
    base = refimpl.load_model(case.base, "float64")
    adapters = [folder and refimpl.load_adapter(folder, cases.CONFIG) for folder in (case.folder, *instead)]
    right, *predicted = [refimpl.logits(base, [refimpl.Request(LONG, one)])[0][-1:, tokens] for one in adapters]
    return compared(what, [values[None]], [right], predicted or None)
