"""A recording of TensorRT-LLM, which record_tensorrt_llm.py wrote, and the oracle's verdicts on it.

    replay = Replay(read_recording(folder))
    replay.verdicts(batch)          each response beside our float64 truth, in units of honest noise
    replay.related("alone = together")      pairs of responses to one request that must be the same but for rounding

Nothing here needs TensorRT-LLM.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import Array
from ...engines.interface import EngineRequest
from ...engines.record_tensorrt_llm import VERSION, digest
from ...engines.tensorrt_llm import response_of
from ...errors import LoracleError
from ...formats.hf import save_model
from ...loading.model_folder import base_folder, load_model
from ..cases.case import Case, Exchange, Run
from ..cases.testbed import Testbed
from ..noise.ensemble import ensemble, wider
from ..noise.measure import ErrorRatios, Errors, measure
from ..noise.verdict import Verdict, judge, learn_thresholds


@dataclass(frozen=True, eq=False)
class Batch:
    """One recorded batch."""

    part: str  # eager, grouped, graphs, misaligned
    relation: str  # alone, together, permuted, uniform, ...
    case: Case
    exchanges: tuple[Exchange, ...]  # none if it failed
    may_fail: bool
    error: str

    @property
    def name(self) -> str:
        """Unique in a recording."""
        return f"{self.part}/{self.case.name}"


@dataclass(frozen=True, eq=False)
class Recording:
    """Everything in one folder."""

    folder: Path
    plan: Mapping[str, Any]
    summary: Mapping[str, Any]
    testbed: Testbed
    batches: tuple[Batch, ...]


def read_recording(folder: Path, model: Path | None = None) -> Recording:
    """Return the recording in a folder.

    model: the base, where it is neither the embedded one nor in $LORACLE_MODELS. LoracleError for a folder that is no
    recording, is damaged, or was made with other weights than are here."""
    plan, summary = read_json(folder / "requests.json"), read_json(folder / "summary.json")
    try:
        for file, version in (("requests.json", plan["version"]), ("summary.json", summary["version"])):
            if version != VERSION:
                raise LoracleError(f"{folder / file}: version {version}, this is {VERSION}")
        testbed = _testbed(folder, plan, summary, model)
        batches = [
            _batch(folder, part["name"], case)
            for part in plan["parts"]
            if part["kind"] == "model"
            for case in part["cases"]
            if (folder / part["name"] / f"{case['name']}.json").is_file()
        ]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise LoracleError(f"{folder}: not a recording ({type(error).__name__} {error})") from None
    return Recording(folder, plan, summary, testbed, tuple(batches))


def _testbed(folder: Path, plan: Mapping[str, Any], summary: Mapping[str, Any], model: Path | None) -> Testbed:
    """The base and the adapters, if they have the weights that the engine had."""
    base = model or _base(folder, str(plan["model"]))
    ours = load_model(base, plan["dtype"])
    if model is None and plan["model"] == "tiny":  # it was written in the dtype of the recording
        with tempfile.TemporaryDirectory() as scratch:
            save_model(ours, Path(scratch) / "model")
            _check_weights(folder, summary["weights"]["model"], Path(scratch) / "model", base)
    else:
        _check_weights(folder, summary["weights"]["model"], base)
    paths = {name: folder / "adapters" / name for name in plan["adapters"]}
    for name, path in paths.items():
        _check_weights(folder, summary["weights"][name], path)
    return Testbed.load(base, ours, paths)


def _base(folder: Path, name: str) -> Path:
    if name == "tiny":
        return base_folder("tiny")
    parents = [Path(os.environ["LORACLE_MODELS"])] if "LORACLE_MODELS" in os.environ else []
    for candidate in (folder / "model", *(parent / name for parent in parents)):
        if candidate.is_dir():
            return candidate
    raise LoracleError(
        f"{folder}: was made with the model {name!r}, which is not there; give it, or set LORACLE_MODELS"
    )


def _check_weights(folder: Path, recorded: str, weights: Path, name: Path | None = None) -> None:
    """LoracleError, which calls the weights by `name`, if their digest is not the recorded one."""
    if digest(weights) != recorded:
        raise LoracleError(
            f"{folder}: was made with other weights than those in {name or weights} (SHA-256 {recorded[:16]}...)"
        )


def read_json(file: Path) -> Any:
    """Return the JSON in a file of a recording. LoracleError if it cannot be read."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoracleError(f"{file}: cannot be read ({error})") from None


def read_arrays(file: Path) -> dict[str, Array]:
    """Return the arrays in a file of a recording. LoracleError if it cannot be read."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # zipfile and numpy have many ways to say that a file is damaged
        raise LoracleError(f"{file}: cannot be read ({type(error).__name__}: {error})") from None


def _batch(folder: Path, part: str, planned: Mapping[str, Any]) -> Batch:
    file = folder / part / f"{planned['name']}.json"
    recorded, arrays = read_json(file), read_arrays(file.with_suffix(".npz"))
    requests = tuple(
        EngineRequest(tuple(int(t) for t in fields["prompt_ids"]), fields["adapter"], int(fields["max_new_tokens"]))
        for fields in recorded["requests"]
    )
    if recorded["requests"] != planned["requests"]:
        raise LoracleError(f"{file}: answers other requests than requests.json asks")
    answers = recorded["answers"]
    if not recorded["error"] and len(answers) != len(requests):
        raise LoracleError(f"{file}: {len(answers)} answers to {len(requests)} requests")
    exchanges = []
    for i, (request, answer) in enumerate(zip(requests, answers, strict=False)):
        rows = arrays.get(f"context_{i}"), arrays.get(f"generation_{i}")
        response = response_of(len(request.prompt_ids), answer, *rows)
        exchanges.append(Exchange(request, request.adapters, response, 0, i))
    case = Case(planned["name"], (Run(requests),))
    return Batch(part, planned["relation"], case, tuple(exchanges), planned["may_fail"], recorded["error"])


@dataclass(frozen=True, eq=False)
class Pair:
    """Two responses to one request: of each a batch, and its index there."""

    what: str
    first: tuple[Batch, int]
    second: tuple[Batch, int]

    @property
    def name(self) -> str:
        """Unique in a recording."""
        (first, i), (second, j) = self.first, self.second
        return f"{self.what}: {first.name}[{i}] and {second.name}[{j}]"


# Which batches have the same requests, by what must not matter: ((part, relation), (part, relation)).
RELATIONS = {
    "alone = together": (("eager", "alone"), ("eager", "together")),
    "permuted": (("eager", "together"), ("eager", "permuted")),
    "one adapter = mixed": (("eager", "together"), ("eager", "uniform")),
    "unified = grouped": (("eager", "uniform"), ("grouped", "uniform")),
    "graphs = eager": (("eager", "together"), ("graphs", "together")),
    "graphs = eager, one adapter": (("eager", "uniform"), ("graphs", "uniform")),
    "graphs = eager, alone": (("eager", "alone"), ("graphs", "alone")),
}


class Replay:
    """A recording with its errors measured; the thresholds of the verdicts come from all of it."""

    def __init__(self, recording: Recording) -> None:
        """Measure every response. LoracleError if no batch was served."""
        self.recording = recording
        self.served = tuple(batch for batch in recording.batches if batch.exchanges and not batch.error)
        if not self.served:
            raise LoracleError(f"{recording.folder}: no batch was answered; summary.json says why")
        members = ensemble(recording.testbed.dtype)
        self._ratios: dict[str, list[ErrorRatios]] = {}
        self._errors: dict[str, list[Errors | None]] = {}
        for batch in self.served:
            ratios, errors = measure(batch.case, batch.exchanges, recording.testbed, members)
            self._ratios[batch.name], self._errors[batch.name] = ratios, errors
        self.thresholds = learn_thresholds([one for ratios in self._ratios.values() for one in ratios])

    def verdicts(self, batch: Batch) -> list[Verdict]:
        """Return a verdict on each response; what is too close to call is compared with three times the honest runs."""
        verdicts = [judge(ratios, self.thresholds) for ratios in self._ratios[batch.name]]
        if not any(verdict.verdict == "undecided" for verdict in verdicts):
            return verdicts
        testbed = self.recording.testbed
        again, _ = measure(batch.case, batch.exchanges, testbed, wider(testbed.dtype))
        return [
            judge(ratios, self.thresholds) if verdict.verdict == "undecided" else verdict
            for verdict, ratios in zip(verdicts, again, strict=True)
        ]

    def ratios(self, batch: Batch) -> list[ErrorRatios]:
        """Return the error ratios of each response."""
        return self._ratios[batch.name]

    def related(self, what: str) -> list[Pair]:
        """Return all pairs of one of RELATIONS, in a fixed order."""
        one, other = RELATIONS[what]
        return [
            Pair(what, (first, i), (second, j))
            for first in self.served
            for second in self.served
            if ((first.part, first.relation), (second.part, second.relation)) == (one, other)
            for i, x in enumerate(first.exchanges)
            for j, y in enumerate(second.exchanges)
            if x.request == y.request
        ]

    def compare(self, pair: Pair) -> Verdict:
        """Return a verdict on the difference of two responses.

        Two honest responses are as far apart as two honest errors are: by sqrt(2) units, where one is off by 1. Only
        rows that both show of the text that both have are compared: they may part where two tokens are equally likely.
        """
        (first, i), (second, j) = pair.first, pair.second
        ratios, other_ratios = self._ratios[first.name][i], self._ratios[second.name][j]
        errors, other_errors = self._errors[first.name][i], self._errors[second.name][j]
        if errors is None or other_errors is None:
            return judge(replace(ratios, problem=ratios.problem or other_ratios.problem), self.thresholds)
        exchange = first.exchanges[i]
        same = _common_prefix(exchange.response.token_ids, second.exchanges[j].response.token_ids)
        start = max(errors.rows.start, other_errors.rows.start)
        stop = min(errors.rows.stop, other_errors.rows.stop, len(exchange.request.prompt_ids) + same)
        if stop <= start:
            return judge(replace(ratios, problem="no row that both show"), self.thresholds)
        rows, other_rows = (slice(start - one.rows.start, stop - one.rows.start) for one in (errors, other_errors))
        difference = errors.error[rows] - other_errors.error[other_rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sqrt(np.mean(difference**2, axis=1) / 2) / errors.unit[rows]
        return judge(replace(ratios, ratio=ratio, first=start), self.thresholds)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with; all of `one` if it is the shorter."""
    return next((n for n, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), len(one))
