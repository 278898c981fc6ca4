"""Defects of OpenVINO GenAI, driven through its worker, on the folders of adapter_cases.py."""

from pathlib import Path

import adapter_cases as cases
from driving import LONG, after_long, ask, started
from showing import Shown, shows

from refimpl.engines.interface import EngineRequest
from refimpl.engines.recipes import OPENVINO_GENAI

OPENVINO = "openvino_genai", OPENVINO_GENAI


@shows
def openvino_genai_prefixes_of_other_adapters(root: Path) -> Shown:
    case = cases.plain(cases.Builder(root))
    with started(*OPENVINO, case, pipeline="batching", prefix_cache="on") as engine:
        got = ask(engine, EngineRequest(LONG, None, 1), EngineRequest(LONG, "a", 1))
    what = "the token after a prompt of 40, with prefix caching, after the base was asked the same"
    return after_long(case, what, got)


@shows
def openvino_genai_add_request_without_its_adapter(root: Path) -> Shown:
    case = cases.plain(cases.Builder(root))
    with started(*OPENVINO, case, pipeline="batching", adapters="request") as engine:
        got = ask(engine, EngineRequest(LONG, "a", 1))
    what = "the token after a prompt, of a request with an adapter to add_request()"
    return after_long(case, what, got, None)


@shows
def openvino_genai_another_weight_of_a_partial_adapter(root: Path) -> Shown:
    requests = [EngineRequest(LONG, adapter_weights=(("a", weight),)) for weight in (1.0, 0.5)]
    with started(*OPENVINO, cases.plain(cases.Builder(root)), adapters="as-is") as engine:
        error = ask(engine, *requests).error
    return Shown("an adapter on q_proj, v_proj and down_proj, with weight 0.5 after weight 1", error=error)
