"""Defects of vLLM on a CPU, driven through its worker, on the folders of adapter_cases.py."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import adapter_cases as cases
import numpy as np
import pytest
from showing import Shown, compared, shows

import refimpl
from refimpl.engines import registry
from refimpl.engines.environments import missing, python_of
from refimpl.engines.interface import Engine, EngineRequest, Settings
from refimpl.engines.recipes import VLLM
from refimpl.formats.peft import save_adapter

JOB = Path(__file__).parent / "job_vllm.py"
LONG = tuple(np.random.default_rng(4).integers(3, 96, 40).tolist())  # more than a block of 32


def start(base: Path, options: dict[str, str] | None = None, **settings: object) -> Engine:
    """vLLM with this base. Skips where it is not installed."""
    if why := missing(VLLM):
        pytest.skip(why)
    engine = registry.make("vllm", options or {})
    engine.start(Settings(base, **{"max_length": 48, "max_requests": 2, "max_adapters": 2, "max_rank": 16} | settings))
    return engine


def prompt_rows(engine: Engine, names: list[str | None]) -> list[np.ndarray]:
    """Log-probabilities of PROMPT, asked with each of these in one batch."""
    answers = engine.run([EngineRequest(tuple(cases.PROMPT), name, 1) for name in names])
    return [answer.logprobs[: len(cases.PROMPT)] for answer in answers]


@shows
def vllm_compiled_adapter_is_the_base(root: Path) -> Shown:
    case = cases.other_prefix(cases.Builder(root))
    engine = start(case.base)
    try:
        engine.load("a", case.folder)
        got = prompt_rows(engine, ["a"])
    finally:
        engine.close()
    return compared("an adapter of a compiled model", got, [case.right], [case.without])


@shows
def vllm_base_rows_get_the_last_slot(root: Path) -> Shown:
    build = cases.Builder(root)
    case = cases.plain(build)
    other = dataclasses.replace(
        build.adapter(), lora={m: dataclasses.replace(x, B=-x.B) for m, x in build.adapter().lora.items()}
    )
    second = build.case("second", other, None)
    engine = start(case.base, {"last-slot": "free"})
    try:
        engine.load("first", case.folder)
        engine.load("second", second.folder)
        got = prompt_rows(engine, ["first", "second"])
        got = prompt_rows(engine, [None, "first"])[:1]
    finally:
        engine.close()
    return compared("a request without adapter in a mixed batch", got, [case.without], [second.right])


@shows
def vllm_reload_in_place_reads_old_prefixes(root: Path) -> Shown:
    build = cases.Builder(root)
    case = cases.plain(build)
    engine = start(case.base, prefix_caching=True)
    first = refimpl.load_adapter(case.folder, cases.CONFIG)
    second = dataclasses.replace(first, lora={m: dataclasses.replace(x, B=-x.B) for m, x in first.lora.items()})

    def answer() -> np.ndarray:
        return engine.run([EngineRequest(LONG, "a", 1)])[0].logprobs[-1:]

    try:
        engine.load("a", case.folder)
        answer()
        shutil.rmtree(case.folder)
        save_adapter(second, case.folder, "float32")
        engine.load("a", case.folder)
        got = answer()
    finally:
        engine.close()
    right = refimpl.logits(build.models[False], [refimpl.Request(LONG, second)])[0][-1:]
    return compared("the token after a prompt of 40, with prefix caching, after a reload in place", [got], [right])


@shows
def vllm_prompt_logprobs_of_two_requests(root: Path) -> Shown:
    case = cases.plain(cases.Builder(root))
    if why := missing(VLLM):
        pytest.skip(why)
    words = [str(word) for word in (python_of(VLLM), JOB, case.base, case.folder, json.dumps(cases.PROMPT))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    what = "prompt_logprobs of two requests, enable_lora without lora_target_modules"
    if done.returncode == 0:
        return Shown(what)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line]
    return Shown(what, error=f"exit {done.returncode}: {lines[-1].strip()[:160] if lines else 'no word'}")
