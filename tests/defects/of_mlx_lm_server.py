"""Defects of mlx-lm's server, driven through its worker, on the folders of adapter_cases.py."""

from pathlib import Path

import adapter_cases as cases
from driving import LONG, after_long, ask, started
from showing import Shown, shows

from refimpl.engines.interface import EngineRequest
from refimpl.engines.recipes import MLX_LM

SERVER = "mlx_lm_server", MLX_LM


@shows
def mlx_lm_server_adapters_without_model(root: Path) -> Shown:
    case = cases.plain(cases.Builder(root))
    with started(*SERVER, case, model="default") as engine:
        got = ask(engine, EngineRequest(LONG, "a", 1))
    return after_long(case, "the token after a prompt, of a request without `model`", got, None)


@shows
def mlx_lm_server_new_weights_in_the_folder(root: Path) -> Shown:
    build = cases.Builder(root)
    former = cases.plain(build)
    case = build.case("new", build.adapter(("k_proj", "o_proj")), build.adapter())
    with started(*SERVER, former, folders="in-place") as engine:
        ask(engine, EngineRequest(LONG, "a", 1))
        engine.load("a", case.folder)
        got = ask(engine, EngineRequest(LONG, "a", 1))
    what = "the token after a prompt, of an adapter whose folder has new weights since it was asked the same"
    return after_long(case, what, got, former.folder)


@shows
def mlx_lm_server_a_text_sent_back(root: Path) -> Shown:
    with started(*SERVER, cases.plain(cases.Builder(root)), prefix_cache="on") as engine:
        answer = ask(engine, EngineRequest(LONG, "a", 3)).token_ids
        error = ask(engine, EngineRequest((*LONG, *answer), "a", 3)).error
    return Shown("a prompt of 40 and the 3 tokens of its answer as a prompt", error=error)
