"""Defects of SGLang, driven through its worker, on the folders of adapter_cases.py."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import adapter_cases as cases
from driving import ask, started
from showing import Shown, compared, shows

from refimpl.engines.interface import EngineError, EngineRequest
from refimpl.engines.recipes import SGLANG


def prompt_of(root: Path, make: Callable[[cases.Builder], cases.Case], what: str) -> Shown:
    """Its rows of a prompt with this adapter, beside ours with what the case is about, and without it."""
    case = make(cases.Builder(root))
    with started("sglang", SGLANG, case, adapters="any") as engine:
        got = ask(engine, EngineRequest(tuple(cases.PROMPT), "a", 1))
    assert got.logprobs is not None, got.error
    return compared(what, [got.logprobs], [case.right], [case.without])


@shows
def sglang_rslora(root: Path) -> Shown:
    return prompt_of(root, cases.rslora, "a prompt, of an rsLoRA")


@shows
def sglang_alpha_pattern(root: Path) -> Shown:
    return prompt_of(root, cases.alpha_pattern, "a prompt, of an adapter with an alpha_pattern")


@shows
def sglang_rank_pattern(root: Path) -> Shown:
    return its_end(narrow_down(cases.Builder(root)), "a prompt, of an adapter with a rank_pattern")


@shows
def sglang_up_without_gate(root: Path) -> Shown:
    build = cases.Builder(root)
    case = build.case("up", build.adapter(("q_proj", "v_proj", "up_proj")), None)
    return its_end(case, "a prompt, of an adapter on q_proj, v_proj and up_proj")


def its_end(case: cases.Case, what: str) -> Shown:
    """What it says last, where a request for this adapter ends it."""
    error = ""
    with started("sglang", SGLANG, case) as engine:
        try:
            ask(engine, EngineRequest(tuple(cases.PROMPT), "a", 1))
        except EngineError as died:
            error = str(died)
    return Shown(what, error=next((part for part in error.split(" | ") if "Error: " in part), error))


def narrow_down(build: cases.Builder) -> cases.Case:
    """down_proj has half of the rank of the others. (q_proj of another rank than v_proj is refused.)"""
    narrow, rest = build.adapter(("down_proj",), r=2), build.adapter(("q_proj", "v_proj"))
    config = dataclasses.replace(rest.config, rank_pattern={"down_proj": 2}, target_modules=cases.MODULES)
    return build.case("narrow", dataclasses.replace(rest, config=config, lora={**narrow.lora, **rest.lora}), None)
