"""The units of the course, exercises and labs, by every name that a learner may call them."""

from pathlib import Path

from ..cuda.runner import kernels_folder
from ..errors import LoracleError
from ..loading.suggestion import did_you_mean
from . import exercise_names, load
from .exercise import Exercise, Lab

Unit = Exercise | Lab

PACKAGE = Path(__file__).parent


def units() -> list[Unit]:
    """Return all exercises and labs in the order of the course."""
    return [load(name) for name in exercise_names()]


def unit_named(text: str) -> Unit:
    """Return the unit called ch06_prefix_key, ch06, ch6, 6, prefix_key, ch06_prefix_cache, lab_b_shrink, lab_b or b.

    LoracleError for a name that no unit has."""
    names = {spelling: unit.name for unit in units() for spelling in spellings(unit)}
    word = Path(text).stem.lower() if text.endswith(".py") else text.lower()
    if word.isdigit():
        word = str(int(word))
    if word not in names:
        nearest = did_you_mean(text, names) or f": it has {', '.join(unit.name for unit in units())}"
        raise LoracleError(f"the course has no {text!r}{nearest}")
    return load(names[word])


def spellings(unit: Unit) -> set[str]:
    """Return what a unit may be called on the command line."""
    prefix, number_or_letter = unit.name.split("_")[:2]
    if isinstance(unit, Lab):
        return {unit.name, f"{prefix}_{number_or_letter}", number_or_letter}
    number = str(int(prefix.removeprefix("ch")))
    return {unit.name, unit.chapter, unit.function, prefix, f"ch{number}", number}


def stub(exercise: Exercise) -> Path:
    """Return the file of the package that a learner starts from."""
    return PACKAGE / "exercises" / f"{exercise.name}.py"


def short_name(name: str) -> str:
    """Return 6 of ch06_prefix_key, B of lab_b_shrink."""
    prefix, letter = name.split("_")[:2]
    return letter.upper() if prefix == "lab" else str(int(prefix.removeprefix("ch")))


def opened(exercise: Exercise) -> list[Path]:
    """Return the files that a chapter opens, where they are in this installation."""
    root = PACKAGE.parents[1]
    kernels = kernels_folder()  # in the checkout, or in the wheel
    return [
        kernels / name.removeprefix("kernels/") if name.startswith("kernels/") else root / name
        for name in exercise.opens
    ]
