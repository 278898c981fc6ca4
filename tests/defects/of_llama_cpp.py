"""Defects of llama.cpp: of its convert_lora_to_gguf.py and then its library, on the folders of adapter_cases.py."""

import subprocess
from pathlib import Path

import adapter_cases as cases
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from showing import Shown, compared, shows

import refimpl
from refimpl.engines import registry
from refimpl.engines.environments import folder, missing
from refimpl.engines.interface import Engine, EngineRequest, Settings
from refimpl.engines.recipes import LLAMA_CPP, VLLM

JOB = Path(__file__).parents[1] / "engines" / "job_convert_lora.py"
CONVERTER = "source/*/vendor/llama.cpp/convert_lora_to_gguf.py"


def start(base: Path) -> Engine:
    """The library with this base. Skips where it is not installed."""
    if why := missing(LLAMA_CPP):
        pytest.skip(why)
    engine = registry.make("llama_cpp", {})
    engine.start(Settings(base, max_length=32, max_requests=2))
    return engine


def as_users_do(case: cases.Case, root: Path) -> np.ndarray:
    """Convert, load, and run: the logits of PROMPT."""
    if why := missing(LLAMA_CPP) or missing(VLLM):  # whose torch the converter takes
        pytest.skip(why)
    script = next(folder(LLAMA_CPP).glob(CONVERTER))
    words = [folder(VLLM) / "bin/python", JOB, script, case.base, root, case.folder]
    subprocess.run([str(word) for word in words], check=True, timeout=600)
    engine = start(case.base)
    try:
        engine.load("a", root / f"{case.folder.name}.gguf")
        return rows(engine, "a")
    finally:
        engine.close()


def rows(engine: Engine, adapter: str | None, count: int = len(cases.PROMPT)) -> np.ndarray:
    """The logits of PROMPT, or of its beginning."""
    return engine.run([EngineRequest(tuple(cases.PROMPT[:count]), adapter, 1)])[0].logits[:count]


def right(case: cases.Case) -> np.ndarray:
    """Ours of the folder as it is, in float64."""
    model = refimpl.load_model(case.base, "float64")
    return refimpl.logits(model, [refimpl.Request(cases.PROMPT, refimpl.load_adapter(case.folder, model))])[0]


def converted(root: Path, case: cases.Case, what: str) -> Shown:
    """What the converter and the library make of a case, against it and against the case without its thing."""
    return compared(what, [as_users_do(case, root)], [right(case)], [case.without])


@shows
def llama_cpp_rslora(root: Path) -> Shown:
    return converted(root, cases.rslora(cases.Builder(root)), "an rsLoRA through convert_lora_to_gguf.py")


@shows
def llama_cpp_alpha_pattern(root: Path) -> Shown:
    return converted(root, cases.alpha_pattern(cases.Builder(root)), "an alpha_pattern through convert_lora_to_gguf.py")


@shows
def llama_cpp_pissa(root: Path) -> Shown:
    return converted(
        root, cases.base_changed(cases.Builder(root)), "an unconverted PiSSA through convert_lora_to_gguf.py"
    )


@shows
def llama_cpp_layer_replication(root: Path) -> Shown:
    case = cases.layer_replication(cases.Builder(root))
    twice = refimpl.replicated(refimpl.load_model(case.base, "float64"), [[0, 1], [0, 1]])
    adapter = refimpl.load_adapter(case.folder, twice)
    right = refimpl.logits(twice, [refimpl.Request(cases.PROMPT, adapter)])
    what = "layer_replication [[0, 1], [0, 1]] through convert_lora_to_gguf.py"
    return compared(what, [as_users_do(case, root)], right, [case.without])


@shows
def llama_cpp_alora_acts_before_its_invocation(root: Path) -> Shown:
    return converted(
        root, cases.alora_invocation_tokens(cases.Builder(root)), "an aLoRA that the prompt does not invoke"
    )


@shows
def llama_cpp_a_nan_stays_in_the_context(root: Path) -> Shown:
    case = cases.plain(cases.Builder(root))
    file = case.folder / "adapter_model.safetensors"
    save_file({name: np.full_like(x, np.nan) for name, x in load_file(file).items()}, file)
    engine = start(case.base)
    try:
        before = rows(engine, None, 4)
        engine.load("nan", case.folder)
        rows(engine, "nan")
        after = rows(engine, None, 4)
    finally:
        engine.close()
    what = "a request without adapter, shorter than one before it whose adapter holds NaN"
    if np.isfinite(before).all() and np.isnan(after).any():
        return Shown(what, error=f"{np.isnan(after).mean():.0%} of its logits are NaN, and none were before")
    return compared(what, [after], [before], [before])
