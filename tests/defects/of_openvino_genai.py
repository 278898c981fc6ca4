"""Defects of OpenVINO GenAI, driven through its worker, on the folders of adapter_cases.py."""

from pathlib import Path

import adapter_cases as cases
import numpy as np
import pytest
from showing import Shown, compared, shows

import refimpl
from refimpl.engines import registry
from refimpl.engines.environments import missing
from refimpl.engines.interface import EngineRequest, EngineResponse, Settings
from refimpl.engines.recipes import OPENVINO_GENAI

LONG = tuple(np.random.default_rng(4).integers(3, 96, 40).tolist())  # more than a block of 32


def asked(case: cases.Case, *requests: EngineRequest, **options: str) -> EngineResponse:
    """The answer to the last of these, one after another, where `a` is the case's adapter. Skips where it is not
    installed."""
    if why := missing(OPENVINO_GENAI):
        pytest.skip(why)
    settings = Settings(case.base, max_length=48, max_requests=2, prefix_caching="prefix_cache" in options)
    engine = registry.make("openvino_genai", {key.replace("_", "-"): value for key, value in options.items()})
    try:
        engine.start(settings)
        engine.load("a", case.folder)
        return [engine.run([request])[0] for request in requests][-1]
    finally:
        engine.close()


def after_long(case: cases.Case, what: str, got: EngineResponse, base_instead: bool = False) -> Shown:
    """Its first row after LONG, where it shows a token, beside ours with the adapter, and without it."""
    assert got.top is not None, got.error
    tokens, values = np.array(list(got.top[0])), np.array(list(got.top[0].values()))
    base, adapter = refimpl.load_model(case.base, "float64"), refimpl.load_adapter(case.folder, cases.CONFIG)
    right, without = (refimpl.logits(base, [refimpl.Request(LONG, one)])[0][-1:, tokens] for one in (adapter, None))
    return compared(what, [values[None]], [right], [without] if base_instead else None)


@shows
def openvino_genai_prefixes_of_other_adapters(root: Path) -> Shown:
    case = cases.plain(cases.Builder(root))
    requests = EngineRequest(LONG, None, 1), EngineRequest(LONG, "a", 1)
    got = asked(case, *requests, pipeline="batching", prefix_cache="on")
    what = "the token after a prompt of 40, with prefix caching, after the base was asked the same"
    return after_long(case, what, got)


@shows
def openvino_genai_add_request_without_its_adapter(root: Path) -> Shown:
    case = cases.plain(cases.Builder(root))
    got = asked(case, EngineRequest(LONG, "a", 1), pipeline="batching", adapters="request")
    what = "the token after a prompt, of a request with an adapter to add_request()"
    return after_long(case, what, got, base_instead=True)


@shows
def openvino_genai_another_weight_of_a_partial_adapter(root: Path) -> Shown:
    requests = [EngineRequest(LONG, adapter_weights=(("a", weight),)) for weight in (1.0, 0.5)]
    error = asked(cases.plain(cases.Builder(root)), *requests, adapters="as-is").error
    return Shown("an adapter on q_proj, v_proj and down_proj, with weight 0.5 after weight 1", error=error)
