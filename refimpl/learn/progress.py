"""What a learner has tried: progress.json in the course's folder, of which an update of Loracle changes nothing.

It is for the learner's eyes. A report grades every file again, and takes tries and hints from here alone.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ..loading.json_file import is_integer, parse_json
from .verdict import NOT_ATTEMPTED, PASSED, Verdict

FILE = "progress.json"
MOST = 10**6  # tries or hints: what is larger was not counted by us


@dataclass
class UnitProgress:
    """What happened to one exercise or lab so far."""

    outcome: str = NOT_ATTEMPTED  # of the last check
    mistake: str = ""
    tries: int = 0
    hints: int = 0  # shown
    graded: str = ""  # SHA-256 of the file that had this outcome
    passed: bool = False  # a check, this one or an earlier one: a try that fails takes nothing away

    @property
    def so_far(self) -> str:
        """Return what the last check said, and that an earlier one had passed."""
        if self.outcome == NOT_ATTEMPTED:
            return "-"
        last = self.outcome + (f": {self.mistake}" if self.mistake else "")
        return f"passed; the last try: {last}" if self.passed and self.outcome != PASSED else last


@dataclass
class Progress:
    """All units by name, and the SHA-256 of each file as it was when it was copied into the folder."""

    units: dict[str, UnitProgress] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)

    def unit(self, name: str) -> UnitProgress:
        """Return the progress of a unit; a new one where there is none."""
        return self.units.setdefault(name, UnitProgress())

    def note(self, verdict: Verdict, graded: str = "") -> None:
        """Keep a verdict; what was not attempted is no try. graded: the SHA-256 of the file."""
        unit = self.unit(verdict.exercise)
        unit.tries += verdict.outcome != NOT_ATTEMPTED
        unit.outcome, unit.mistake, unit.graded = verdict.outcome, verdict.mistake, graded
        unit.passed = unit.passed or verdict.passed

    def save(self, folder: Path) -> None:
        """Write progress.json: all of it, or nothing."""
        text = json.dumps({"units": {name: asdict(unit) for name, unit in self.units.items()}, "copies": self.copies})
        beside = folder / f".{FILE}.{os.getpid()}"
        beside.write_text(text + "\n", "utf-8")
        os.replace(beside, folder / FILE)


def read_progress(folder: Path) -> Progress | None:
    """Return what progress.json says; an empty Progress where there is none, None where it is damaged."""
    path = folder / FILE
    try:
        if path.exists() and not path.is_file():  # to open a pipe would be to wait for ever
            return None
        with open(path, "rb") as file:
            data = parse_json(file.read(10**7))
        return Progress({name: _unit(value) for name, value in data["units"].items()}, _texts(data["copies"]))
    except FileNotFoundError:
        return Progress()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _unit(data: Mapping[str, Any]) -> UnitProgress:
    numbers = {key: data.get(key, 0) for key in ("tries", "hints")}
    if not all(is_integer(value) and 0 <= value <= MOST for value in numbers.values()):
        raise ValueError("tries and hints are counts")
    texts = _texts({key: data.get(key, "") for key in ("outcome", "mistake", "graded")})
    passed = data.get("passed", False) is True or texts["outcome"] == PASSED  # older files have the outcome alone
    return UnitProgress(**texts, **numbers, passed=passed)


def _texts(data: Mapping[str, Any]) -> dict[str, Any]:
    if not all(isinstance(value, str) for value in data.values()):
        raise ValueError("expected texts")
    return dict(data)


def put_aside(folder: Path) -> Path:
    """Rename a damaged progress.json, so that nothing of it is lost; return its new name."""
    names = (folder / f"progress.damaged-{number}.json" for number in count(1))
    target = next(path for path in names if not path.exists())
    os.replace(folder / FILE, target)
    return target
