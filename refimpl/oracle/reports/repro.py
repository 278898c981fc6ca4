"""A failure as a folder that can be sent to whoever has to mend it, and played again with one command.

    README.md               what went wrong, in words, and the command
    repro.json              the case, the settings, the engine with its options and versions, what was answered
    expected.safetensors    RUN.INDEX.logits [tokens, vocab] in float64; RUN.INDEX.unit [rows], their noise
    got.safetensors         RUN.INDEX.logits (logprobs, top.ids, top.logprobs) [rows, ...], as the engine gave them
    adapters/               the PEFT folders that the case uses
    model/                  the base; the embedded one, and one that is too large, are only named, with their SHA-256

It is written beside its place and renamed at the end. No key or password is in it, and no user or query of a URL.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...arrays import DTYPES, Array
from ...engines.interface import Engine, EngineResponse, Settings
from ...errors import LoracleError
from ...loading.diagnostics import Diagnostics, one_line, shown
from ...loading.json_file import is_integer, read_json, typed
from ...loading.model_folder import base_folder, load_model
from ..cases.case import Case, Exchange, Load, keys_of, loaded_before, play, prepare, requests_of
from ..cases.case_json import from_json
from ..cases.testbed import Testbed
from ..noise.verdict import Thresholds
from .repro_write import FILE, FORMAT, Repro, digests

T = TypeVar("T")


class ReproError(LoracleError):
    """A repro folder that is damaged, or that refers to something that is not there, or not the same."""


def load_repro(folder: Path) -> Repro:
    """Read a folder. ReproError for one that is damaged, or whose base is elsewhere and no longer the same."""
    folder = Path(folder)
    data = _Reader(folder / FILE)
    if data.get("format", int) != FORMAT:
        raise ReproError(f"{folder / FILE}: format is {data.get('format', int)}, this version reads {FORMAT}")
    testbed = _load_testbed(folder, data)
    case = data.checked("case", lambda: from_json(data.get("case", dict)))
    names = {step.adapter for step in case.steps if isinstance(step, Load)} if not case.stateless else set()
    if missing := names - set(testbed.paths):
        raise ReproError(f"{folder / FILE}: the case loads adapter {sorted(missing)[0]!r}, which the folder has not")
    expected, responses = (_read_arrays(folder / f"{name}.safetensors") for name in ("expected", "got"))
    options, versions = data.texts("options"), data.texts("versions")
    return Repro(
        testbed,
        case,
        data.checked("answers", lambda: _exchanges(case, testbed, data.get("answers", list), responses)),
        _parts(expected, "logits"),
        _parts(expected, "unit"),
        data.get("why", str),
        data.checked("settings", lambda: _settings(data.get("settings", dict), testbed.folder, options)),
        data.get("engine", str),
        options,
        versions,
        data.get("seed", int),
        data.checked("limits", lambda: _limits(data.data.get("limits"))),
        data.get("module_folder", str) if "module_folder" in data.data else "",  # folders of version 0.1.0 have none
    )


def _limits(data: Mapping[str, Any] | None) -> Thresholds | None:
    if data is None:
        return None
    numbers: dict[str, Any] = {field.name: float(data[field.name]) for field in dataclasses.fields(Thresholds)}
    return Thresholds(**numbers)


def replay(
    repro: Repro, make_engine: Callable[[str, Mapping[str, str]], Engine]
) -> tuple[Testbed, Case, list[Exchange]]:
    """Play its case again. make_engine: the engine's name and its options -> an engine that is not started."""
    engine = make_engine(repro.engine, repro.options)
    try:
        engine.start(repro.settings)
        if repro.case.stateless:
            prepare(engine, repro.testbed)
        return repro.testbed, repro.case, play(engine, repro.case, repro.testbed)
    finally:
        engine.close()


class _Reader:
    """Reads repro.json; every mistake in it is a ReproError that names the file."""

    def __init__(self, file: Path) -> None:
        diagnostics = Diagnostics()
        data = read_json(file, diagnostics)
        if data is None:
            raise ReproError(diagnostics.problems[0])
        self.file, self.data = file, data

    def get(self, key: str, kind: type[T]) -> T:
        """Return the value of a key, which must be of this type."""
        return typed(self.data, key, kind, self.file, ReproError)

    def texts(self, key: str) -> dict[str, str]:
        """Return an object all of whose values are texts."""
        texts = self.get(key, dict)
        return {name: typed(texts, name, str, f"{self.file}: {key}", ReproError) for name in texts}

    def checked(self, key: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except ReproError:
            raise
        except LoracleError as error:
            raise ReproError(one_line(f"{self.file}: {key}: {error}")) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReproError(one_line(f"{self.file}: {key} is damaged ({error})")) from None


def _load_testbed(folder: Path, data: _Reader) -> Testbed:
    base = _where(folder, data, "model", data.get("model", dict))
    dtype = data.get("dtype", str)
    model = load_model(base, dtype)
    adapters = data.get("adapters", dict)
    paths = {key: _where(folder, data, f"adapter {key}", entry) for key, entry in adapters.items()}
    return Testbed.load(base, model, paths)


def _where(folder: Path, data: _Reader, what: str, entry: Any) -> Path:
    """Return the folder or file of a model or adapter. ReproError unless all of its files are what they were."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), dict):
        raise ReproError(one_line(f"{data.file}: {what} is {shown(entry)}, not a folder with the sha256 of its files"))
    if entry.get("name") == "tiny":
        path = base_folder("tiny")
    elif isinstance(entry.get("copy"), str):
        path = folder / entry["copy"]
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ReproError(one_line(f"{data.file}: {what}: {entry['copy']} is not in this folder"))
    elif isinstance(entry.get("folder"), str):
        path = Path(entry["folder"])
    else:
        raise ReproError(one_line(f"{data.file}: {what} has neither a name nor a copy nor a folder"))
    for name, digest in entry["sha256"].items():
        if Path(name).name != name or not (path / name).is_file():
            raise ReproError(one_line(f"{path / name}: is missing ({what} of {data.file})"))
        now = digests([path / name])[name]
        if now != digest:
            was = str(digest)[:12]
            raise ReproError(one_line(f"{path / name}: is not what it was: SHA-256 {now[:12]}..., then {was}..."))
    return path / entry["file"] if entry.get("file") in entry["sha256"] else path  # a GGUF file in that folder


def _settings(data: Mapping[str, Any], model: Path, options: Mapping[str, str]) -> Settings:
    plain = Settings(model)
    given: dict[str, Any] = {"model": model, "options": options}
    for field in dataclasses.fields(Settings):
        if field.name in ("model", "options") or field.name not in data:
            continue
        value, usual = data[field.name], getattr(plain, field.name)
        if isinstance(usual, tuple) and isinstance(value, list) and all(isinstance(x, str) for x in value):
            value = tuple(value)
        fits = value is None or is_integer(value) if usual is None else type(value) is type(usual)
        if not fits or (field.name == "dtype" and value not in DTYPES):
            raise LoracleError(f"{field.name} is {shown(value)}")
        given[field.name] = value
    return Settings(**given)


def _read_arrays(file: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise ReproError(one_line(f"{file}: cannot be read ({error})")) from None


def _parts(arrays: Mapping[str, Array], what: str) -> dict[tuple[int, int], Array]:
    """Return, by (run, index), the arrays whose names end in `what`."""
    arrays_by_request = {}
    for name, x in arrays.items():
        if match := re.fullmatch(rf"(\d+)\.(\d+)\.{what}", name):
            arrays_by_request[int(match[1]), int(match[2])] = x
    return arrays_by_request


def _exchanges(case: Case, testbed: Testbed, responses: Sequence[Any], got: Mapping[str, Array]) -> list[Exchange]:
    """Return the exchanges: the requests stand in the case, and what came of them in the answers."""
    requests = {
        (run, i): (request, keys_of(request, meaning))
        for run, i, request, meaning in requests_of(case, loaded_before(case, testbed))
    }
    exchanges = []
    for entry in responses:
        request, keys = requests[entry["run"], entry["index"]]
        name = f"{entry['run']}.{entry['index']}"
        response = EngineResponse(
            tuple(int(t) for t in entry["token_ids"]),
            int(entry["first"]),
            got.get(f"{name}.logits"),
            got.get(f"{name}.logprobs"),
            _top(got, f"{name}.top"),
            error=str(entry.get("error", "")),
            raw=entry.get("raw"),
        )
        exchanges.append(Exchange(request, keys, response, entry["run"], entry["index"]))
    return exchanges


def _top(got: Mapping[str, Array], name: str) -> list[dict[int, float]] | None:
    if f"{name}.ids" not in got:
        return None
    rows = zip(got[f"{name}.ids"], got[f"{name}.logprobs"], strict=True)
    return [{int(t): float(x) for t, x in zip(ids, logprobs, strict=True) if t >= 0} for ids, logprobs in rows]
