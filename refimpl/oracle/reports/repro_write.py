"""Writing a repro folder (repro.py says what is in one): what is too large is named instead, and no secret goes in."""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...arrays import Array
from ...engines.interface import EngineRequest, EngineResponse, Settings
from ...formats.files import new_folder, write_safetensors
from ...loading.adapter_folder import WEIGHTS_FILE
from ...loading.diagnostics import one_line
from ...loading.mlx_adapter import MLX_FILE
from ...loading.model_folder import base_folder
from ...loading.peft_config import CONFIG_FILE
from ..cases.case import Case, Exchange, Load, Unload
from ..cases.case_json import to_json
from ..cases.testbed import Testbed
from ..noise.verdict import Thresholds
from .redact import clean, is_secret, without_secrets

FORMAT = 1
FILE = "repro.json"
MAX_MODEL = 64_000_000  # bytes; a larger base is named and not copied
MAX_ADAPTER = 256_000_000
MAX_NUMBERS = 64_000_000  # of expected, and of got, each; what comes after is left out
MAX_RAW = 100_000  # characters of one raw answer

_ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, MLX_FILE)
_MODEL_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")


@dataclass(frozen=True, eq=False)
class Repro:
    """A failure, as it is kept in a folder."""

    testbed: Testbed
    case: Case
    exchanges: Sequence[Exchange]  # what was answered then; without what was left out
    expected: Mapping[tuple[int, int], Array]  # (run, index) -> exact logits [tokens, vocab], where they can be read
    unit: Mapping[tuple[int, int], Array]  # (run, index) -> the noise of each shown row [rows]
    why: str
    settings: Settings
    engine: str
    options: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    thresholds: Thresholds | None = None  # what the campaign had learnt of honest answers; None: learn from the case
    module_folder: str = ""  # of an engine that is a user's function: where its file lies

    def save(self, folder: Path) -> None:
        """Write the folder. LoracleError, and no folder, if it cannot be written."""
        expected = _named(self.expected, "logits") | _named(self.unit, "unit")
        responses = {
            f"{_id(exchange)}.{name}": x
            for exchange in self.exchanges
            for name, x in _arrays(exchange.response).items()
        }
        expected, left_out = _bounded(expected)
        responses, also_left_out = _bounded(responses)
        with new_folder(Path(folder)) as scratch:
            data = self._json(scratch, [*left_out, *also_left_out])
            write_safetensors(scratch / "expected.safetensors", expected)
            write_safetensors(scratch / "got.safetensors", responses)
            (scratch / FILE).write_text(json.dumps(data, indent=1, allow_nan=True) + "\n", "utf-8")
            (scratch / "README.md").write_text(_readme(data, self.case), "utf-8")

    def _json(self, scratch: Path, left_out: Sequence[str]) -> dict[str, Any]:
        """Return repro.json, having put the model and the adapters that it names into the folder."""
        return {
            "format": FORMAT,
            "why": clean(self.why),
            "engine": self.engine,
            "module_folder": self.module_folder,
            "options": without_secrets({k: v for k, v in self.options.items() if not is_secret(k)}),
            "versions": without_secrets({"loracle": __version__, **self.versions}),
            "seed": self.seed,
            "limits": None if self.thresholds is None else dataclasses.asdict(self.thresholds),
            "dtype": self.testbed.dtype,
            "model": _put_model(self.testbed.folder, scratch),
            "adapters": _put_adapters(_used(self.case, self.testbed), self.testbed, scratch),
            "settings": _settings_json(self.settings),
            "case": to_json(self.case),
            "answers": without_secrets([_answer_json(exchange) for exchange in self.exchanges]),
            "left_out": left_out,
        }


def _id(exchange: Exchange) -> str:
    return f"{exchange.run}.{exchange.index}"


def _named(arrays: Mapping[tuple[int, int], Array], what: str) -> dict[str, Array]:
    return {f"{run}.{index}.{what}": np.asarray(x, np.float64) for (run, index), x in arrays.items()}


def _arrays(response: EngineResponse) -> dict[str, Array]:
    """Return the numbers of a response, by name, whatever their shape is. A short row of the top k ends in token -1."""
    arrays: dict[str, Array] = {}
    for name in ("logits", "logprobs"):
        x = getattr(response, name)
        if x is not None:
            arrays[name] = x if x.dtype == np.float32 else np.asarray(x, np.float64)
    if response.top is not None:
        k = max(map(len, response.top), default=0)
        ids = np.full((len(response.top), k), -1, np.int64)
        logprobs = np.full((len(response.top), k), np.nan)
        for i, row in enumerate(response.top):
            ids[i, : len(row)], logprobs[i, : len(row)] = list(row), list(row.values())
        arrays |= {"top.ids": ids, "top.logprobs": logprobs}
    return arrays


def _bounded(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], list[str]]:
    """Return as many arrays as MAX_NUMBERS bytes hold, in order, and the names of the others."""
    kept: dict[str, Array] = {}
    for name, x in arrays.items():
        if sum(kept_array.nbytes for kept_array in kept.values()) + x.nbytes <= MAX_NUMBERS:
            kept[name] = x
    return kept, [name for name in arrays if name not in kept]


def _answer_json(exchange: Exchange) -> dict[str, Any]:
    response = exchange.response
    data: dict[str, Any] = {
        "run": exchange.run,
        "index": exchange.index,
        "token_ids": [int(t) for t in response.token_ids],
        "first": response.first_position,
    }
    if response.error:
        data["error"] = response.error
    if response.raw is not None:
        data["raw"] = _raw(response.raw)
    return data


def _raw(raw: Any) -> Any:
    """Return a raw answer as JSON if it is that, else as text; a long one is cut."""
    try:
        text = raw if isinstance(raw, str) else json.dumps(raw)
        if len(text) <= MAX_RAW:
            return raw if isinstance(raw, str) else json.loads(text)
    except (TypeError, ValueError, RecursionError):
        text = repr(raw)
    return text if len(text) <= MAX_RAW else f"{text[:MAX_RAW]} ... ({len(text)} characters)"


def _settings_json(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON: all but the model, which the folder knows, and the engine's options."""
    data = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    del data["model"], data["options"]
    return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}


def _used(case: Case, testbed: Testbed) -> list[str]:
    """Return the keys of the adapters that the engine has loaded: for a batch all of them, asked or not."""
    loaded = {step.adapter for step in case.steps if isinstance(step, Load)}
    return [key for key in testbed.paths if case.stateless or key in loaded]


def _put_adapters(keys: Iterable[str], testbed: Testbed, scratch: Path) -> dict[str, Any]:
    entries = {}
    for i, key in enumerate(keys):
        folder = testbed.paths[key]
        files = [file for name in _ADAPTER_FILES if (file := folder / name).is_file()] if folder.is_dir() else [folder]
        name = f"{i}-{re.sub(r'[^A-Za-z0-9._-]', '_', key)[:60]}"
        entries[key] = _put(folder, files, MAX_ADAPTER, f"adapters/{name}", scratch)
    return entries


def _put_model(folder: Path, scratch: Path) -> dict[str, Any]:
    files = [folder]
    if folder.is_dir():
        files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in _MODEL_SUFFIXES)
    if folder == base_folder("tiny"):
        return {"name": "tiny", "sha256": digests(files)}
    return _put(folder, files, MAX_MODEL, "model", scratch)


def _put(path: Path, files: Sequence[Path], most: int, name: str, scratch: Path) -> dict[str, Any]:
    """Note a folder with these files, or the one file that path is, and copy them if they have not too many bytes."""
    folder, about = (path.parent, {"file": path.name}) if path.is_file() else (path, {})
    entry: dict[str, Any] = {"sha256": digests(files)} | about
    if sum(file.stat().st_size for file in files) > most:
        return {"folder": str(folder.resolve())} | entry
    _copy(files, scratch / name)
    return {"copy": name} | entry


def _copy(files: Sequence[Path], to: Path) -> None:
    to.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, to / file.name)


def digests(files: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by name."""
    by_name = {}
    for path in files:
        with open(path, "rb") as stream:
            h = hashlib.sha256()
            while part := stream.read(1 << 20):
                h.update(part)
        by_name[path.name] = h.hexdigest()
    return by_name


def _readme(data: Mapping[str, Any], case: Case) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in data["versions"].items())
    left_out = f"\nToo large to be kept: {', '.join(data['left_out'])}.\n" if data["left_out"] else ""
    steps = "\n".join(f"{i}. {line}" for i, line in enumerate(_in_words(case), 1))
    return (
        f"# {case.name}: {data['engine']} is wrong\n\n{data['why']}\n\n"
        "    loracle check --replay .\n\n"
        "in this folder plays it again, to the engine that is installed now. Keys and passwords are not stored: give "
        "them as you did before.\n\n"
        f"{steps}\n\n"
        "`expected.safetensors` has the right logits of each request (RUN.INDEX.logits) and the noise of each row "
        "(RUN.INDEX.unit), `got.safetensors` what the engine gave; the rest is in `repro.json`.\n"
        f"{left_out}\nVersions: {versions}; seed {data['seed']}; {data['dtype']}.\n"
    )


def _in_words(case: Case) -> list[str]:
    lines = ["every adapter is loaded under its own name"] if case.stateless else []
    for step in case.steps:
        if isinstance(step, Load):
            lines.append(f"load {step.adapter} under the name {step.name}")
        elif isinstance(step, Unload):
            lines.append(f"unload {step.name}")
        else:
            lines.append("ask " + "; ".join(_request_in_words(request) for request in step.requests))
    return [one_line(line) for line in lines]


def _request_in_words(request: EngineRequest) -> str:
    who = "+".join(f"{name}*{weight:g}" for name, weight in request.adapter_weights) or request.adapter or "the base"
    prompt = " ".join(map(str, request.prompt_ids[:24])) + (" ..." if len(request.prompt_ids) > 24 else "")
    when = f", after {request.arrival_step} steps" if request.arrival_step else ""
    end = f", cancelled after {request.cancel_after}" if request.cancel_after is not None else ""
    return f"{who} for {request.max_new_tokens} after [{prompt}] ({len(request.prompt_ids)} tokens){when}{end}"
