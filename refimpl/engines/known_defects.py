"""Known defects of engines, so that a campaign tells them from news. One file an engine: engines/expected_failures/.

    [[failure]]
    what = "alpha / r, although the adapter says rsLoRA"
    link = "https://github.com/vllm-project/vllm/issues/10798"   # or a list of them
    mutant = "rslora_ignored"         # the diagnosis that it covers: this mutant, or a symptom = "that begins so"
    versions = "vllm>=0.5,<0.6.4"     # as the engine tells its own; without it, all
    options = { last-slot = "free" }  # only if the engine was started so
    shows = false                     # known, but not to be seen as this package drives the engine
    since = "2024-11-30"

A failure that is expected and does not come is reported as well: somebody may have mended it.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import LoracleError
from ..loading.findings import one_line, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "expected_failures"


@dataclass(frozen=True)
class Failure:
    """One known defect."""

    what: str
    link: tuple[str, ...]
    mutant: str = ""  # by its name, "scale_times" for all of its parameters
    symptom: str = ""  # what a symptom begins with
    versions: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    shows: bool = True
    since: str = ""

    def covers(self, mutants: Iterable[str] = (), symptoms: Iterable[str] = ()) -> bool:
        """Is this one of the mutants that were named, or one of the symptoms that were seen?"""
        named = self.mutant and any(self.mutant in (name, name.partition("[")[0]) for name in mutants)
        return bool(named or (self.symptom and any(line.startswith(self.symptom) for line in symptoms)))


def read_failures(engine: str, file: Path | None = None) -> list[Failure]:
    """Those of an engine; none if it has no file. LoracleError, one line, for a file that is damaged."""
    if file is None:
        file = FOLDER / f"{engine}.toml"
        if Path(engine).name != engine or not file.is_file():
            return []
    try:
        data = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise LoracleError(one_line(f"{file}: cannot be read ({error})")) from None
    listed = data.get("failure", [])
    if set(data) - {"failure"} or not isinstance(listed, list):
        raise LoracleError(one_line(f"{file}: expected [[failure]] and nothing else, not {shown(sorted(data))}"))
    return [_failure(entry, f"{file}: failure {i}") for i, entry in enumerate(listed, 1)]


def _failure(entry: object, where: str) -> Failure:
    known = [f.name for f in fields(Failure)]
    if not isinstance(entry, dict):
        raise LoracleError(one_line(f"{where} is {shown(entry)}, not a table"))
    if isinstance(entry.get("link"), str):
        entry["link"] = [entry["link"]]
    for key, value in entry.items():
        if key not in known:
            raise LoracleError(one_line(f"{where}: unknown key {key!r}; known are {', '.join(known)}"))
        if not _KINDS.get(key, _is_text)(value):
            raise LoracleError(one_line(f"{where}: {key} is {shown(value)}, not {_WANTED.get(key, 'a text')}"))
    for key in ("what", "link"):
        if key not in entry:
            raise LoracleError(one_line(f"{where}: {key} is missing"))
    if "mutant" not in entry and "symptom" not in entry:
        raise LoracleError(one_line(f"{where}: neither a mutant nor a symptom says what it covers"))
    try:
        matches_versions(entry.get("versions", ""), {}, "")
    except LoracleError as error:
        raise LoracleError(one_line(f"{where}: {error}")) from None
    return Failure(**{**entry, "what": " ".join(entry["what"].split()), "link": tuple(entry["link"])})


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "link": lambda x: isinstance(x, list) and bool(x) and all(map(_is_text, x)),
    "options": lambda x: isinstance(x, dict) and all(map(_is_text, x.values())),
    "shows": lambda x: isinstance(x, bool),
}
_WANTED = {"link": "a link or a list of them", "options": "a table of texts", "shows": "true or false"}


def applicable(
    failures: Sequence[Failure], engine: str, versions: Mapping[str, str], options: Mapping[str, str] | None = None
) -> list[Failure]:
    """Those that speak of an engine of these versions that was started with these options."""
    given = (options or {}).items()
    return [f for f in failures if f.options.items() <= given and matches_versions(f.versions, versions, engine)]


def match(failures: Sequence[Failure], mutants: Iterable[str] = (), symptoms: Iterable[str] = ()) -> Failure | None:
    """The first that covers a diagnosis: its mutant's name, those that cannot be told from it, and the symptoms."""
    names, lines = list(mutants), list(symptoms)
    return next((f for f in failures if f.covers(names, lines)), None)


def passed(
    failures: Sequence[Failure],
    mutants: Iterable[str] = (),
    symptoms: Iterable[str] = (),
    exercised: Callable[[str], bool] = lambda mutant: True,
) -> list[Failure]:
    """The expected failures that did not come: fixed? mutants, symptoms: all that the campaign found. exercised: would
    it have shown this mutant? One that it could not have shown is not reported."""
    names, lines = list(mutants), list(symptoms)
    missed = [f for f in failures if f.shows and not f.covers(names, lines)]
    return [f for f in missed if not f.mutant or exercised(f.mutant)]


# Versions: comparisons of numbers with dots. What comes after them (rc1, +cpu) is not compared.

_ONE = re.compile(r"\s*(==|!=|<=|>=|<|>)\s*([0-9]+(?:\.[0-9]+)*)(\.\*)?\s*")
_NAME = re.compile(r"\s*([A-Za-z][A-Za-z0-9_.-]*)\s*(?=[=!<>])")


def matches_versions(specifier: str, versions: Mapping[str, str], engine: str) -> bool:
    """Does ">=0.5,<0.6.4" or "torch==2.*" hold? A package whose version nobody told is taken to be meant: a known
    defect is better mentioned once too often."""
    name, rest = engine, specifier
    if found := _NAME.match(specifier):
        name, rest = found[1], specifier[found.end() :]
    parts = [_ONE.fullmatch(part) for part in rest.split(",")] if rest.strip() else []
    if not all(parts) or (found and not parts):
        raise LoracleError(
            f'versions is {shown(specifier)}: it must be comparisons like ">=0.5,<0.6.4" or "torch==2.*"'
        )
    told = {_plain(k): v for k, v in versions.items()}
    release = re.match(r"[vb]?([0-9]+(?:\.[0-9]+)*)", told.get(_plain(name), ""))
    if release is None:
        return True
    have = [int(x) for x in release[1].split(".")]
    return all(_holds(have, part[1], [int(x) for x in part[2].split(".")], bool(part[3])) for part in parts if part)


def _plain(name: str) -> str:
    """llama.cpp, llama_cpp and llama-cpp are one name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _holds(have: list[int], comparison: str, wanted: list[int], prefix: bool) -> bool:
    """2.8 and 2.8.0 are the same; ==2.* compares the first number alone."""
    width = len(wanted) if prefix else max(len(have), len(wanted))
    a, b = ((x + [0] * width)[:width] for x in (have, wanted))
    return {"==": a == b, "!=": a != b, "<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b}[comparison]
