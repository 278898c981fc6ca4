"""The course: chapters to run, functions to write, and a grader that says what goes wrong, and where engines had it.

A chapter is three files of one number: chapters/ (a script that one reads and runs), exercises/ (the function to write)
and graders/ (what is right, and which wrong answers are known). Three doors lead to the one `grade` (grade.py): the
command `loracle learn`, `check` in a notebook, and pytest in the learner's folder.
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import LoracleError
from ..loading.suggestion import did_you_mean
from . import graders
from .exercise import Exercise, Lab
from .grade import grade
from .load_file import DoesNotRun, check_parameters

NOTEBOOK_LIMIT = 30.0  # seconds: larger is more patience with a slow laptop, and with an endless loop


def exercise_names() -> list[str]:
    """The names of all exercises and labs, in the order of the course: chapters first."""
    return sorted(module.name for module in pkgutil.iter_modules(graders.__path__))


def load(name: str) -> Exercise | Lab:
    """Return the exercise or the lab of that name ("ch06_prefix_key"). LoracleError for a name that there is not."""
    if name not in exercise_names():
        raise LoracleError(f"there is no exercise {name!r}{did_you_mean(name, exercise_names())}")
    module = importlib.import_module(f"{graders.__name__}.{name}")
    unit: Exercise | Lab = module.EXERCISE if hasattr(module, "EXERCISE") else module.LAB
    return unit


def exercises() -> list[Exercise]:
    """All exercises, in the order of the chapters."""
    return [unit for unit in map(load, exercise_names()) if isinstance(unit, Exercise)]


def check(function: Callable[..., Any], limit: float = NOTEBOOK_LIMIT) -> None:
    """Print the verdict on a function that was written in a notebook; the exercise is known by the function's name.

    limit is in seconds. LoracleError for a function of another name than those of the exercises."""
    if isinstance(function, str):
        raise LoracleError(f"check takes the function itself: check({function}), without quotes")
    names = {exercise.function: exercise for exercise in exercises()}
    if getattr(function, "__name__", None) not in names:
        name = getattr(function, "__name__", repr(function))
        raise LoracleError(f"no exercise has a function {name}{did_you_mean(name, list(names))}")
    exercise = names[function.__name__]
    try:
        check_parameters(function, exercise.function, Path(__file__).parent / "exercises" / f"{exercise.name}.py")
    except DoesNotRun as error:
        print(f"{exercise.name}: not yet. {error}")
    else:
        print(grade(exercise, function, limit).text())
