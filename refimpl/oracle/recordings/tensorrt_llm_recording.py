"""A recording of TensorRT-LLM, read back and judged: what record_tensorrt_llm.py wrote, by the oracle's own verdicts.

    replay = Replay(read_recording(folder))
    replay.verdicts(batch)          each answer beside our float64 truth, in units of honest noise
    replay.related("alone = together")      pairs of answers to one request that must be the same but for rounding
    kernel_results(recording)       the LoRA product alone, beside a bound computed from its numbers

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

from ...adapter import load_adapter
from ...arrays import DTYPES, Array
from ...engines.interface import EngineRequest, EngineResponse
from ...engines.record_tensorrt_llm import VERSION, digest
from ...errors import LoracleError
from ...formats.hf import save_model
from ...weights import base_folder, load_model
from ..cases.case import Case, Exchange, Run
from ..cases.testbed import Testbed, in_float64
from ..noise.ensemble import ensemble, wider
from ..noise.measure import ErrorRatios, Errors, measure
from ..noise.verdict import Verdict, judge, limits
from ..vectors.bounds import exact, product


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch that was recorded."""

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
    """All of one folder."""

    folder: Path
    plan: Mapping[str, Any]
    summary: Mapping[str, Any]
    testbed: Testbed
    batches: tuple[Batch, ...]


def read_recording(folder: Path, model: Path | None = None) -> Recording:
    """model: the base, where it is not the embedded one and not in $LORACLE_MODELS. LoracleError for a folder that is
    no recording, is damaged, or was made with other weights than are here."""
    plan, summary = _json(folder / "requests.json"), _json(folder / "summary.json")
    try:
        for file, version in (("requests.json", plan["version"]), ("summary.json", summary["version"])):
            if version != VERSION:
                raise LoracleError(f"{folder / file}: version {version}, this is {VERSION}")
        base = model or _base(folder, str(plan["model"]))
        ours = load_model(base, plan["dtype"])
        if model is None and plan["model"] == "tiny":  # it was written out in the dtype that was asked for
            with tempfile.TemporaryDirectory() as scratch:
                save_model(ours, Path(scratch) / "model")
                _check_weights(folder, summary["weights"]["model"], Path(scratch) / "model", base)
        else:
            _check_weights(folder, summary["weights"]["model"], base)
        paths = {name: folder / "adapters" / name for name in plan["adapters"]}
        for name, path in paths.items():
            _check_weights(folder, summary["weights"][name], path)
        adapters = {name: load_adapter(path, ours.config, name) for name, path in paths.items()}
        testbed = Testbed(base, ours, in_float64(ours), paths, adapters)
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


def _base(folder: Path, name: str) -> Path:
    if name == "tiny":
        return base_folder("tiny")
    places = [
        folder / "model",
        *([Path(os.environ["LORACLE_MODELS"]) / name] if "LORACLE_MODELS" in os.environ else []),
    ]
    for place in places:
        if place.is_dir():
            return place
    raise LoracleError(
        f"{folder}: was made with the model {name!r}, which is not there; give it, or set LORACLE_MODELS"
    )


def _check_weights(folder: Path, recorded: str, here: Path, called: Path | None = None) -> None:
    if digest(here) != recorded:
        where = called or here
        raise LoracleError(f"{folder}: was made with other weights than those in {where} (SHA-256 {recorded[:16]}...)")


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoracleError(f"{file}: cannot be read ({error})") from None


def _arrays(file: Path) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as found:
            return dict(found)
    except Exception as error:  # zipfile and numpy have many ways to say that a file is damaged
        raise LoracleError(f"{file}: cannot be read ({type(error).__name__}: {error})") from None


def _batch(folder: Path, part: str, planned: Mapping[str, Any]) -> Batch:
    file = folder / part / f"{planned['name']}.json"
    told, arrays = _json(file), _arrays(file.with_suffix(".npz"))
    asks = tuple(
        EngineRequest(tuple(int(t) for t in r["prompt_ids"]), r["adapter"], int(r["max_new_tokens"]))
        for r in told["requests"]
    )
    if told["requests"] != planned["requests"]:
        raise LoracleError(f"{file}: answers other requests than requests.json asks")
    answers = told["answers"]
    if not told["error"] and len(answers) != len(asks):
        raise LoracleError(f"{file}: {len(answers)} answers to {len(asks)} requests")
    case = Case(planned["name"], (Run(asks),))
    exchanges = tuple(
        Exchange(
            ask,
            () if ask.adapter is None else ((ask.adapter, 1.0),),
            answer_of(len(ask.prompt_ids), told_one, arrays.get(f"context_{i}"), arrays.get(f"generation_{i}")),
            0,
            i,
        )
        for i, (ask, told_one) in enumerate(zip(asks, answers, strict=False))
    )
    return Batch(part, planned["relation"], case, exchanges, planned["may_fail"], told["error"])


def answer_of(prompt: int, told: Mapping[str, Any], context: Array | None, generation: Array | None) -> EngineResponse:
    """context_logits and generation_logits as one run of rows. The last row of the one is the first of the other,
    except where a release leaves that out of the generation logits."""
    tokens = tuple(int(t) for t in told["token_ids"])
    whole = context is not None and len(context) == prompt
    if generation is None:
        if context is not None:
            return EngineResponse(tokens, 0 if whole else prompt - len(context), context.astype(np.float32))
        top = told.get("top")
        return EngineResponse(
            tokens, prompt - 1, top=None if top is None else [{int(t): p for t, p in r.items()} for r in top]
        )
    missing = len(tokens) - len(generation)
    if missing not in (0, 1) or (missing and context is None):
        return EngineResponse(tokens, error=f"{len(generation)} rows of generation logits for {len(tokens)} tokens")
    if context is None:
        return EngineResponse(tokens, prompt - 1, generation.astype(np.float32))
    rows = np.concatenate([context, generation[1 - missing :]]).astype(np.float32)
    return EngineResponse(tokens, 0 if whole else prompt - len(context), rows)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two answers to one request."""

    what: str
    first: tuple[Batch, int]
    second: tuple[Batch, int]

    @property
    def name(self) -> str:
        """Unique in a recording."""
        (a, i), (b, j) = self.first, self.second
        return f"{self.what}: {a.name}[{i}] and {b.name}[{j}]"


# Which batches hold the same requests, in words: ((part, relation), (part, relation)). None: the same, and any.
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
    """A recording, measured as a whole: what honest looks like is learnt from all of it."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.answered = tuple(b for b in recording.batches if b.exchanges and not b.error)
        if not self.answered:
            raise LoracleError(f"{recording.folder}: no batch was answered; summary.json says why")
        members = ensemble(recording.testbed.dtype)
        self._measured: dict[str, tuple[list[ErrorRatios], list[Errors | None]]] = {
            b.name: measure(b.case, b.exchanges, recording.testbed, members) for b in self.answered
        }
        self.limits = limits([m for measured, _ in self._measured.values() for m in measured])

    def verdicts(self, batch: Batch) -> list[Verdict]:
        """Each answer beside the truth; what is too close to call, beside three times as many honest runs."""
        found = [judge(m, self.limits) for m in self._measured[batch.name][0]]
        if any(j.verdict == "undecided" for j in found):
            testbed = self.recording.testbed
            again, _ = measure(batch.case, batch.exchanges, testbed, wider(testbed.dtype))
            found = [
                judge(m, self.limits) if j.verdict == "undecided" else j for j, m in zip(found, again, strict=True)
            ]
        return found

    def measured(self, batch: Batch) -> list[ErrorRatios]:
        """Each answer's ratios."""
        return self._measured[batch.name][0]

    def related(self, what: str) -> list[Pair]:
        """All pairs of one of RELATIONS, in a fixed order."""
        (part_1, relation_1), (part_2, relation_2) = RELATIONS[what]
        return [
            Pair(what, (a, i), (b, j))
            for a in self.answered
            for b in self.answered
            if (a.part, a.relation, b.part, b.relation) == (part_1, relation_1, part_2, relation_2)
            for i, x in enumerate(a.exchanges)
            for j, y in enumerate(b.exchanges)
            if x.ask == y.ask
        ]

    def compare(self, pair: Pair) -> Verdict:
        """Two honest answers are as far apart as two honest errors are: by sqrt(2) units, where one is off by 1. Over
        the rows that both show of the text that both have: they may part where two tokens are equally likely."""
        (a, i), (b, j) = pair.first, pair.second
        m, raw, other = self._measured[a.name][0][i], self._measured[a.name][1][i], self._measured[b.name][1][j]
        if raw is None or other is None:
            return judge(replace(m, problem=m.problem or self._measured[b.name][0][j].problem), self.limits)
        one, two = a.exchanges[i].answer.token_ids, b.exchanges[j].answer.token_ids
        same = next((k for k, (s, t) in enumerate(zip(one, two, strict=False)) if s != t), len(one))
        first = max(raw.rows.start, other.rows.start)
        last = min(raw.rows.stop, other.rows.stop, len(a.exchanges[i].ask.prompt_ids) + same)
        x = raw.error[first - raw.rows.start : last - raw.rows.start]
        y = other.error[first - other.rows.start : last - other.rows.start]
        if not len(x):
            return judge(replace(m, problem="no row that both show"), self.limits)
        unit = raw.unit[first - raw.rows.start : last - raw.rows.start]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sqrt(np.mean((x - y) ** 2, axis=1) / 2) / unit
        return judge(replace(m, ratio=ratio, first=first), self.limits)


@dataclass(frozen=True)
class KernelResult:
    """One vector of the LoRA product."""

    part: str
    name: str
    error: str
    may_fail: bool
    worst: float  # the largest error over its bound; must be <= 1


def kernel_results(recording: Recording) -> list[KernelResult]:
    """Every vector that was recorded, in every part that did."""
    arrays = _arrays(recording.folder / "kernel.npz")
    found = []
    for part in recording.plan["parts"]:
        if part["kind"] != "kernel":
            continue
        for vector in recording.plan["kernel"]:
            file = recording.folder / part["name"] / f"{vector['name']}.json"
            if file.is_file():
                told = _json(file)
                outputs = _arrays(file.with_suffix(".npz"))
                worst = float("nan") if told["error"] else max(_ratios(vector, arrays, outputs), default=float("inf"))
                found.append(KernelResult(part["name"], vector["name"], told["error"], vector["may_fail"], worst))
    return found


def _ratios(vector: Mapping[str, Any], arrays: Mapping[str, Array], outputs: Mapping[str, Array]) -> list[float]:
    """For each module and request, the largest |y - exact| / bound. A row without an adapter is exactly 0."""
    name, dtype, ratios = vector["name"], vector["dtype"], []

    def there(key: str) -> Array:
        return arrays[f"{name}.{key}"].view(DTYPES[dtype]).astype(np.float64)

    x = there("x")
    for m, d_out in enumerate(vector["d_outs"]):
        y = outputs.get(f"out_{m}", np.zeros(0, np.uint16)).view(DTYPES[dtype]).astype(np.float64)
        if y.shape != (len(x), d_out):
            return [float("inf")]
        for adapter, rows in _runs(vector["requests"]):
            if adapter < 0:
                ratios.append(0.0 if not y[rows].any() else float("inf"))
                continue
            low = product(exact(x[rows]), exact(there(f"A.{m}.{adapter}"))).rounded(dtype)
            near = product(low, exact(there(f"B.{m}.{adapter}"))).rounded(dtype)
            ratio = np.abs(y[rows] - near.value) / near.off
            ratios.append(float("inf") if np.isnan(ratio).any() else float(ratio.max()))
    return ratios


def _runs(requests: Sequence[Mapping[str, Any]]) -> list[tuple[int, slice]]:
    found, at = [], 0
    for r in requests:
        n = r["length"] if r["type"] == 0 else 1
        found.append((int(r["adapter"]), slice(at, at + n)))
        at += n
    return found
