"""A JSON file that may be anything: damaged, a Git LFS pointer, or full of values of the wrong type."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import LoracleError
from .diagnostics import Diagnostics, one_line, shown

MAX_BYTES = 100_000_000  # the largest config.json or index seen has a few megabytes
LARGEST = 2**31 - 1  # token ids and axes are int32


def lfs_pointer(head: bytes) -> str | None:
    """If the file begins like a Git LFS pointer: a sentence that says so, else None."""
    if not head.startswith(b"version https://git-lfs.github.com/spec/"):
        return None
    size = re.search(rb"\nsize (\d{1,20})", head)
    of = f" of size {size.group(1).decode()} bytes" if size else ""
    return f"is a Git LFS pointer to a file{of}, not the file itself: run `git lfs pull` in its repository"


def read_json(path: Path, diagnostics: Diagnostics) -> dict[str, Any] | None:
    """The JSON object in a file, or None with the problem noted. Duplicate keys are refused: loaders differ on them."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        diagnostics.problem(path, f"cannot be read ({error.strerror or error})")
        return None
    if not raw.strip():
        diagnostics.problem(path, "is empty")
    elif pointer := lfs_pointer(raw[:200]):
        diagnostics.problem(path, pointer)
    elif len(raw) > MAX_BYTES:
        diagnostics.problem(path, f"is larger than {MAX_BYTES} bytes")
    else:
        try:
            data = parse_json(raw)
        except (ValueError, RecursionError) as error:
            diagnostics.problem(path, f"is not valid JSON ({error})")
            return None
        if isinstance(data, dict):
            return data
        diagnostics.problem(path, f"holds {shown(data)}, not a JSON object")
    return None


def parse_json(raw: bytes) -> Any:
    """JSON text in UTF-8. ValueError or RecursionError for anything else, duplicate keys included."""
    return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"duplicate key {shown(key)}")
        data[key] = value
    return data


def read_json_lines(file: Path, error: type[LoracleError]) -> list[tuple[str, dict[str, Any]]]:
    """The (FILE:LINE, object) of each line of a JSONL file that is not blank; `error` for a line that is no object.

    Lines end at a line feed, and nowhere else: JSON may hold the other characters that str.splitlines breaks at."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(one_line(f"{file}: cannot be read ({problem})")) from None
    if pointer := lfs_pointer(text[:200].encode()):
        raise error(f"{file}: {pointer}")
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = parse_json(line.encode())
            json.dumps(row, ensure_ascii=False).encode()  # an escaped half of a surrogate pair is no character
        except (ValueError, RecursionError) as problem:
            raise error(one_line(f"{where}: not JSON ({problem}); expected an object, one a line")) from None
        if not isinstance(row, dict):
            raise error(one_line(f"{where}: expected an object, one a line, not {shown(row)}"))
        rows.append((where, row))
    return rows


def is_integer(value: object) -> bool:
    """Whether it is an int; JSON's true and false are ints to Python, and not meant."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a finite int or float (Python's JSON also reads NaN and Infinity)."""
    if isinstance(value, int) and is_integer(value):
        return abs(value) <= 2**53
    return isinstance(value, float) and math.isfinite(value)


T = TypeVar("T")
JSON_TYPES = {str: "a text", bool: "true or false", int: "an integer", list: "a list", dict: "an object"}


def typed(data: object, key: str, kind: type[T], where: object, error: type[LoracleError] = LoracleError) -> T:
    """Return data[key], which must be there and of a JSON type. The error, one line, names where, key and value."""
    if not isinstance(data, dict):
        raise error(one_line(f"{where} is {shown(data)}, not an object"))
    value = data.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise error(one_line(f"{where}: {key} is {shown(value)}: it must be {JSON_TYPES[kind]}"))
    return value


class Keys:
    """Typed reading of one JSON object. A bad value is noted and answered with the default, so that all are found."""

    def __init__(self, file: Path | str, data: Mapping[str, Any], diagnostics: Diagnostics) -> None:
        self.file, self.data, self.diagnostics = file, data, diagnostics

    def problem(self, what: str) -> None:
        """Note what is wrong with the file."""
        self.diagnostics.problem(self.file, what)

    def given(self, key: str) -> bool:
        """Whether the key is there and not null; null means missing, as in transformers."""
        return self.data.get(key) is not None

    def _checked(self, key: str, default: Any, valid: bool, expected: str) -> Any:
        if not self.given(key):
            if default is None:
                self.diagnostics.problem(self.file, f"{key} is missing: it must be {expected}")
            return default
        if valid:
            return self.data[key]
        self.diagnostics.problem(self.file, f"{key} is {shown(self.data[key])}: it must be {expected}")
        return default

    def integer(self, key: str, default: int | None = None, least: int = 1, most: int = LARGEST) -> int:
        """An int in [least, most]. Without a default it must be given; after a problem it is 1."""
        value = self.data.get(key)
        valid = is_integer(value) and least <= value <= most  # type: ignore[operator]
        checked = self._checked(key, default, valid, f"an integer from {least} to {most}")
        return 1 if checked is None else checked

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0. Without a default it must be given; after a problem it is 1."""
        value = self.data.get(key)
        valid = is_number(value) and value > 0  # type: ignore[operator]
        checked = self._checked(key, default, valid, "a number above 0")
        return 1.0 if checked is None else float(checked)

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        return self._checked(key, default, isinstance(self.data.get(key), bool), "true or false")
