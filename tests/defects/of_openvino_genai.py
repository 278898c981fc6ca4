"""Defects of OpenVINO GenAI, driven through its worker, on the folders of adapter_cases.py."""

from collections.abc import Sequence
from pathlib import Path

import adapter_cases as cases
import numpy as np
import pytest
from showing import Shown, compared, shows

import refimpl
from refimpl.adapter import Adapter
from refimpl.engines import registry
from refimpl.engines.environments import missing
from refimpl.engines.interface import Engine, EngineRequest, EngineResponse, Settings
from refimpl.engines.recipes import OPENVINO_GENAI

LONG = tuple(np.random.default_rng(4).integers(3, 96, 40).tolist())  # more than a block of 32


def start(base: Path, **options: str) -> Engine:
    """It with this base. Skips where it is not installed."""
    if why := missing(OPENVINO_GENAI):
        pytest.skip(why)
    settings = Settings(base, max_length=48, max_requests=2, prefix_caching="prefix_cache" in options)
    engine = registry.make("openvino_genai", {key.replace("_", "-"): value for key, value in options.items()})
    engine.start(settings)
    return engine


def after_prompt(build: cases.Builder, got: EngineResponse, prompt: Sequence[int], *adapters: Adapter | None) -> list:
    """The first row that it shows, and ours with each of these, where it shows a token."""
    assert got.top is not None, got.error
    tokens, values = np.array(list(got.top[0])), np.array(list(got.top[0].values()))
    ours = [refimpl.logits(build.models[False], [refimpl.Request(prompt, one)])[0][-1, tokens] for one in adapters]
    return [[row[None]] for row in (values, *ours)]


@shows
def openvino_genai_prefixes_of_other_adapters(root: Path) -> Shown:
    build = cases.Builder(root)
    case = cases.plain(build)
    engine = start(case.base, pipeline="batching", prefix_cache="on")
    try:
        engine.load("a", case.folder)
        engine.run([EngineRequest(LONG, None, 1)])
        got = engine.run([EngineRequest(LONG, "a", 1)])[0]
    finally:
        engine.close()
    adapter = refimpl.load_adapter(case.folder, cases.CONFIG)
    what = "the token after a prompt of 40, with prefix caching, after the base was asked the same"
    return compared(what, *after_prompt(build, got, LONG, adapter))


@shows
def openvino_genai_add_request_without_its_adapter(root: Path) -> Shown:
    build = cases.Builder(root)
    case = cases.plain(build)
    engine = start(case.base, pipeline="batching", adapters="request")
    try:
        engine.load("a", case.folder)
        got = engine.run([EngineRequest(LONG, "a", 1)])[0]
    finally:
        engine.close()
    adapter = refimpl.load_adapter(case.folder, cases.CONFIG)
    what = "the token after a prompt, of a request with an adapter to add_request()"
    return compared(what, *after_prompt(build, got, LONG, adapter, None))


@shows
def openvino_genai_another_weight_of_a_partial_adapter(root: Path) -> Shown:
    build = cases.Builder(root)
    case = cases.plain(build)
    engine = start(case.base, adapters="as-is")
    try:
        engine.load("a", case.folder)
        engine.run([EngineRequest(LONG, adapter_weights=(("a", 1.0),))])
        error = engine.run([EngineRequest(LONG, adapter_weights=(("a", 0.5),))])[0].error
    finally:
        engine.close()
    return Shown("an adapter on q_proj, v_proj and down_proj, with weight 0.5 after weight 1", error=error)
