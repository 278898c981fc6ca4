"""The tables of `loracle inspect --for`, held against the engines that are here: each case of adapter_cases.py is
loaded and run, and what is seen is what the table says, no row more and no row less.

PEFT runs where it is installed; llama.cpp (its own converter, then its library) and vLLM with LORACLE_LIVE=1, after
`loracle engines setup llama_cpp` and `... vllm`, whose torch the converter takes; mlx-lm with LORACLE_MLX_PYTHON, as in
test_live_mlx.py."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from adapter_cases import CASES, CONFIG, PROMPT, TIED, Builder, Case, observed

import refimpl
from refimpl.config import ModelConfig
from refimpl.engines import registry
from refimpl.engines.adapter_limits import limits_of, names, read_engine
from refimpl.engines.environments import folder
from refimpl.engines.interface import EngineRequest, Settings
from refimpl.engines.recipes import LLAMA_CPP, VLLM
from refimpl.errors import LoracleError
from refimpl.formats.convert import convert

Run = Callable[[Case], np.ndarray]
live = pytest.mark.skipif(
    os.environ.get("LORACLE_LIVE") != "1", reason="LORACLE_LIVE=1 runs it, after `loracle engines setup NAME`"
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is the local path"),
    pytest.mark.filterwarnings("ignore:.*init_lora_weights"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    builder = Builder(tmp_path_factory.mktemp("limits"))
    return {name: build(builder) for name, build in CASES.items()}


def said(engine: str, case: Case) -> set[str]:
    """What the table says of a case: `takes` if no row is about it."""
    return {hit.does for hit in limits_of(case.folder, engine, config_of(case))} or {"takes"}


def config_of(case: Case) -> ModelConfig:
    """The config of its base."""
    return TIED if case.base.name == "base-tied" else CONFIG


def check(expected: set[str], case: Case, verdict: str) -> None:
    """What was seen is what is said. Of a case whose right numbers are not known: that it does something with it."""
    if case.right is None and expected == {"takes"}:
        assert verdict == "changes"
    elif case.right is not None and np.array_equal(case.right, case.without) and "rejects" not in expected:
        assert verdict == "takes"  # there is nothing to ignore in it
    else:
        assert verdict == "rejects" if "rejects" in expected else expected == {verdict}


@pytest.mark.parametrize("engine", names())
def test_a_row_that_claims_a_test_has_a_case(cases: dict[str, Case], engine: str) -> None:
    """Of an engine that is run here."""
    tested = {row.when for row in read_engine(engine).limits if row.evidence == "test"}
    assert not tested or engine in ("peft", "llama_cpp", "vllm", "mlx")
    shown = {hit.what for case in cases.values() for hit in limits_of(case.folder, engine, config_of(case))}
    assert {row.when for row in read_engine(engine).limits if row.what in shown} >= tested


@pytest.mark.parametrize("name", CASES)
def test_peft(cases: dict[str, Case], name: str) -> None:
    """Alone, and in a mixed batch, in which there may be no DoRA."""
    hf = pytest.importorskip("hugging_face", reason="pip install -e .[peft]")
    case, expected = cases[name], said("peft", cases[name])

    def run(case: Case, mixed: bool) -> np.ndarray:
        model = hf.load(case.base, {"a": case.folder}, "float32")
        if mixed:
            return hf.logits(model, [PROMPT, PROMPT[:4]], ["a", hf.BASE])[0]
        return hf.logits(model, [PROMPT])[0]

    check({"takes"} if name == "dora" else expected, case, observed(case, lambda case: run(case, mixed=False)))
    check(expected, case, observed(case, lambda case: run(case, mixed=True)))


CONVERTER = "source/*/vendor/llama.cpp/convert_lora_to_gguf.py"
JOB = Path(__file__).parent / "job_convert_lora.py"


@pytest.fixture(scope="module")
def llama_cpp(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Convert as its users do, load, and run."""
    out, engines = tmp_path_factory.mktemp("gguf"), {}
    script = next(folder(LLAMA_CPP).glob(CONVERTER))
    for base in {case.base for case in cases.values()}:
        folders = [case.folder for case in cases.values() if case.base == base]
        words = [folder(VLLM) / "bin/python", JOB, script, base, out, *folders]
        subprocess.run([str(word) for word in words], check=True, timeout=600)
        engines[base] = registry.make("llama_cpp", {})
        engines[base].start(Settings(base, max_length=32, max_requests=2))

    def run(case: Case) -> np.ndarray:
        if (error := out / f"{case.folder.name}.error").exists():
            raise ValueError(error.read_text()[-300:])
        engines[case.base].load("a", out / f"{case.folder.name}.gguf")
        return engines[case.base].run([EngineRequest(tuple(PROMPT), "a", 1)])[0].logits[: len(PROMPT)]

    yield run
    for engine in engines.values():
        engine.close()


@live
@pytest.mark.parametrize("name", CASES)
def test_llama_cpp(cases: dict[str, Case], llama_cpp: Run, name: str) -> None:
    check(said("llama_cpp", cases[name]), cases[name], observed(cases[name], llama_cpp))


# The worker names the layers that may have LoRA, and neither table is among them: those cases are not seen.
NOT_OF_VLLM = ("lora_on_embed_tokens", "lora_on_lm_head", "lora_on_a_tied_head", "base_copies")


@pytest.fixture(scope="module")
def vllm(cases: dict[str, Case]) -> Iterator[Run]:
    """The engine with its default of max_lora_rank."""
    engine = registry.make("vllm", {})
    engine.start(Settings(cases["plain"].base, max_length=32, max_requests=2, max_adapters=2, max_rank=16))

    def run(case: Case) -> np.ndarray:
        engine.load(case.folder.name, case.folder)
        try:
            return engine.run([EngineRequest(tuple(PROMPT), case.folder.name, 1)])[0].logprobs[: len(PROMPT)]
        finally:
            engine.unload(case.folder.name)

    yield run
    engine.close()


@live
@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_OF_VLLM])
def test_vllm(cases: dict[str, Case], vllm: Run, name: str) -> None:
    check(said("vllm", cases[name]), cases[name], observed(cases[name], vllm))


MLX_JOB = Path(__file__).parent / "job_mlx_limits.py"
MLX_PYTHON = os.environ.get("LORACLE_MLX_PYTHON")
with_mlx = pytest.mark.skipif(MLX_PYTHON is None, reason="LORACLE_MLX_PYTHON names no python with mlx-lm")


@pytest.fixture(scope="module")
def mlx(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """mlx-lm on the folders as they are, and on what `loracle convert --to mlx` makes of them."""
    runs = []
    for converted in (False, True):
        out = tmp_path_factory.mktemp(f"mlx-{'converted' if converted else 'as-they-are'}")
        for base in {case.base for case in cases.values()}:
            folders = []
            for case in (case for case in cases.values() if case.base == base):
                try:
                    folders.append(as_mlx(case, out / "folders") if converted else case.folder)
                except LoracleError as error:
                    (out / f"{case.folder.name}.error").write_text(str(error))
            words = [MLX_PYTHON, MLX_JOB, base, out, json.dumps(PROMPT), *folders]
            subprocess.run([str(word) for word in words], check=True, timeout=600, capture_output=True)
        runs.append(partial(read_rows, out))
    return runs[0], runs[1]


def as_mlx(case: Case, folders: Path) -> Path:
    """The folder that convert writes for mlx-lm."""
    folders.mkdir(exist_ok=True)
    convert(case.folder, folders / case.folder.name, "mlx", base=refimpl.load_model(case.base, "float64"))
    return folders / case.folder.name


def read_rows(out: Path, case: Case) -> np.ndarray:
    """What the job has written of a case."""
    if (error := out / f"{case.folder.name}.error").exists():
        raise ValueError(error.read_text()[-300:])
    return np.load(out / f"{case.folder.name}.npy")


@with_mlx
@pytest.mark.parametrize("name", CASES)
def test_mlx(cases: dict[str, Case], mlx: tuple[Run, Run], name: str) -> None:
    """As they are, none loads (any_peft). Converted, each does what the other rows say."""
    as_they_are, converted = mlx
    assert observed(cases[name], as_they_are) == "rejects"
    (as_it_is,) = [row.what for row in read_engine("mlx").limits if row.when == "any_peft"]
    rows = [hit for hit in limits_of(cases[name].folder, "mlx", config_of(cases[name])) if hit.what != as_it_is]
    check({hit.does for hit in rows} or {"takes"}, cases[name], observed(cases[name], converted))
