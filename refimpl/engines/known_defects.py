"""Known defects of engines, which a campaign reports apart from new ones. One file each: engines/expected_failures/.

    [[failure]]
    what = "alpha / r, although the adapter says rsLoRA"
    link = "https://github.com/vllm-project/vllm/issues/10798"   # or a list of them
    mutant = "rslora_ignored"         # the diagnosis that it covers: this mutant, or a symptom = "that begins so"
    versions = "vllm>=0.5,<0.6.4"     # as the engine reports its own; without it, all
    options = { last-slot = "free" }  # only if the engine was started so
    shows = false                     # known, but this package drives the engine so that it cannot show
    since = "2024-11-30"

A failure that is expected and does not come is reported as well: somebody may have fixed it.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import LoracleError
from ..loading.diagnostics import one_line, shown

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
        """Return whether this is one of the mutants that a diagnosis names, or one of its symptoms."""
        named = self.mutant and any(self.mutant in (name, name.partition("[")[0]) for name in mutants)
        return bool(named or (self.symptom and any(line.startswith(self.symptom) for line in symptoms)))


def read_failures(engine: str, file: Path | None = None) -> list[Failure]:
    """Return the known defects of an engine; none if it has no file. LoracleError, one line, for a damaged file."""
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
    keys = [entry_field.name for entry_field in fields(Failure)]
    if not isinstance(entry, dict):
        raise LoracleError(one_line(f"{where} is {shown(entry)}, not a table"))
    if isinstance(entry.get("link"), str):
        entry["link"] = [entry["link"]]
    for key, value in entry.items():
        if key not in keys:
            raise LoracleError(one_line(f"{where}: unknown key {key!r}; known are {', '.join(keys)}"))
        if not _CHECKS.get(key, _is_text)(value):
            raise LoracleError(one_line(f"{where}: {key} is {shown(value)}, not {_EXPECTED.get(key, 'a text')}"))
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


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "link": lambda x: isinstance(x, list) and bool(x) and all(map(_is_text, x)),
    "options": lambda x: isinstance(x, dict) and all(map(_is_text, x.values())),
    "shows": lambda x: isinstance(x, bool),
}
_EXPECTED = {"link": "a link or a list of them", "options": "a table of texts", "shows": "true or false"}


def applicable(
    failures: Sequence[Failure], engine: str, versions: Mapping[str, str], options: Mapping[str, str] | None = None
) -> list[Failure]:
    """Return those that concern an engine of these versions, started with these options."""
    started_with = (options or {}).items()
    return [
        failure
        for failure in failures
        if failure.options.items() <= started_with and matches_versions(failure.versions, versions, engine)
    ]


def match(failures: Sequence[Failure], mutants: Iterable[str] = (), symptoms: Iterable[str] = ()) -> Failure | None:
    """Return the first that covers a diagnosis: its mutant, those that look the same on this case, or its symptoms."""
    names, lines = list(mutants), list(symptoms)
    return next((failure for failure in failures if failure.covers(names, lines)), None)


def unexpectedly_passing(
    failures: Sequence[Failure],
    mutants: Iterable[str] = (),
    symptoms: Iterable[str] = (),
    exercised: Callable[[str], bool] = lambda mutant: True,
) -> list[Failure]:
    """Return the expected failures that did not come: they may have been fixed.

    mutants, symptoms: all that the campaign diagnosed. exercised: would the campaign have shown this mutant? One that
    it could not have shown is not reported."""
    names, lines = list(mutants), list(symptoms)
    absent = [failure for failure in failures if failure.shows and not failure.covers(names, lines)]
    return [failure for failure in absent if not failure.mutant or exercised(failure.mutant)]


# Versions: comparisons of numbers with dots. What comes after them (rc1, +cpu) is not compared.

_ONE = re.compile(r"\s*(==|!=|<=|>=|<|>)\s*([0-9]+(?:\.[0-9]+)*)(\.\*)?\s*")
_NAME = re.compile(r"\s*([A-Za-z][A-Za-z0-9_.-]*)\s*(?=[=!<>])")


def matches_versions(specifier: str, versions: Mapping[str, str], engine: str) -> bool:
    """Return whether ">=0.5,<0.6.4" or "torch==2.*" holds of these versions, by package.

    A package whose version is not among them is taken to match: a known defect is better mentioned once too often."""
    package, comparisons = engine, specifier
    if name := _NAME.match(specifier):
        package, comparisons = name[1], specifier[name.end() :]
    parts = [_ONE.fullmatch(part) for part in comparisons.split(",")] if comparisons.strip() else []
    if not all(parts) or (name and not parts):
        raise LoracleError(
            f'versions is {shown(specifier)}: it must be comparisons like ">=0.5,<0.6.4" or "torch==2.*"'
        )
    reported = {_plain(key): version for key, version in versions.items()}
    release = re.match(r"[vb]?([0-9]+(?:\.[0-9]+)*)", reported.get(_plain(package), ""))
    if release is None:
        return True
    actual = _numbers(release[1])
    return all(_holds(actual, part[1], _numbers(part[2]), bool(part[3])) for part in parts if part)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def _plain(name: str) -> str:
    """llama.cpp, llama_cpp and llama-cpp are one name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _holds(actual: list[int], comparison: str, limit: list[int], prefix: bool) -> bool:
    """2.8 and 2.8.0 are the same; with `prefix`, ==2.* compares the first number alone."""
    width = len(limit) if prefix else max(len(actual), len(limit))
    x, y = ((numbers + [0] * width)[:width] for numbers in (actual, limit))
    return {"==": x == y, "!=": x != y, "<=": x <= y, ">=": x >= y, "<": x < y, ">": x > y}[comparison]
