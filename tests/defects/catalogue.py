"""Which script shows which entry of docs/defects.md: by the first word of its name, the engine."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from showing import SHOWN, Shown

HERE = Path(__file__).parent
ENGINES = str(HERE.parent / "engines")  # what the scripts share with the tests there
FILES = sorted(HERE.glob("of_*.py"))


def listed() -> list[str]:
    """Return the names of all, without importing an engine."""
    return [name for file in FILES for name in names_in(file)]


def names_in(file: Path) -> list[str]:
    """Return the functions under @shows of one file."""
    return re.findall(r"^@shows\ndef (\w+)\(", file.read_text("utf-8"), re.MULTILINE)


def find(name: str) -> Callable[[Path], Shown]:
    """Return the function that shows this one. KeyError if there is none; pytest's skip where its engine is missing."""
    if ENGINES not in sys.path:
        sys.path.append(ENGINES)
    for file in FILES:
        if name in names_in(file):
            importlib.import_module(file.stem)
    return SHOWN[name]
