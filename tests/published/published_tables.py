"""A table of published prompts and outputs, how to run it here, and when an output counts as the published one."""

import json
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest

from refimpl import LoracleError, Model, Request, generate, load_adapter, load_model
from refimpl.adapter import Adapter
from refimpl.published import weights
from refimpl.published.seeded_adapters import tinyllama_nemo
from refimpl.tensorrt_llm.backend import backend

HERE = Path(__file__).parent
GUIDE = Path(weights.__file__).parent / "guide.json"  # in the package, because `loracle guide` shows it
FILES = {file.stem: file for file in (GUIDE, *sorted(HERE.glob("ll*.json")), HERE / "tinyllama_nemo.json")}


@dataclass(frozen=True)
class Table:
    """The keys of the JSON file. A row has adapter, prompt or prompt_ids, output or output_ids, perhaps a keyword."""

    name: str
    source: str
    note: str
    base: str  # a folder in $LORACLE_MODELS
    adapters: dict[str, str | None]  # name -> folder; None: made by refimpl/published/seeded_adapters.py
    dtype: str
    sampling: str | dict[str, float]
    max_new_tokens: int
    asserts: str  # exact, similar or keyword, keyword, nothing: what the source itself demands
    rows: list[dict[str, Any]]

    @property
    def folders(self) -> list[str]:
        """What has to be in $LORACLE_MODELS."""
        return [self.base, *(folder for folder in self.adapters.values() if folder)]


def table(stem: str) -> Table:
    """One of FILES."""
    return Table(**json.loads(FILES[stem].read_text("utf-8")))


def loaded(t: Table) -> tuple[Model, dict[str, Adapter]]:
    """The weights of a table, or a skip that says what is missing and how to get it."""
    if reason := weights.missing(t.folders):
        pytest.skip(reason)
    model = load_model(weights.folder(t.base), t.dtype)
    adapters = {}
    for name, folder in t.adapters.items():
        try:
            adapters[name] = load_adapter(weights.folder(folder), model.config, name) if folder else tinyllama_nemo()
        except LoracleError as error:  # as published, some of them are pickles
            pytest.skip(f"{folder} cannot be loaded as it is: {error}")
    return model, adapters


def outputs(t: Table, model: Model, adapters: dict[str, Adapter]) -> list[str]:
    """The text of every row, all of them in one batch, rounded as TensorRT-LLM rounds its LoRA."""
    sampling = t.sampling if isinstance(t.sampling, dict) else {}
    requests = [
        Request(model.tokenizer.encode(row["prompt"]), adapters.get(row["adapter"]), **sampling) for row in t.rows
    ]
    return [output.text for output in generate(model, requests, t.max_new_tokens, ops=backend(t.dtype))]


def agrees(asserts: str, row: dict[str, Any], output: str) -> bool:
    """By the measure of the source: `similar` is tests/unittest/utils/util.py, a ratio of at least 0.8."""
    if asserts == "exact":
        return output == row["output"]
    if asserts == "keyword":
        return row["keyword"] in output
    assert asserts == "similar or keyword", asserts
    return SequenceMatcher(None, output, row["output"]).ratio() >= 0.8 or row["keyword"] in output
