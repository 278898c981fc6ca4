"""An engine made of what a learner passed: their functions in the fields of Ops, NumPy's steps in the others.

`loracle learn engine` serves the demo with it, and `loracle check --engine learn` holds it against the reference.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engines.interface import Engine, EngineError, Entry
from ..engines.ours import CAPABILITIES, OURS, YOURS, Ours
from ..errors import LoracleError
from ..loading.diagnostics import one_line
from ..ops import NUMPY, Ops
from ..oracle.check import replay
from ..oracle.reports.repro import load_repro
from . import exercises
from .exercise import Exercise
from .folder import course_folder, digest, place_in
from .grade_file import grade_files
from .load_file import DoesNotRun, load_function
from .progress import Progress, read_progress
from .verdict import PASSED

_passed: dict[tuple[str, str], bool] = {}  # (exercise, SHA-256 of the file): a campaign makes the engine many times

NAME = "learn"
WHAT = "what you passed in `loracle learn`, in our own engine (--option folder=DIR)"


@dataclass(frozen=True)
class Step:
    """One exercise that a learner passed, and the fields of Ops that it fills."""

    exercise: Exercise
    fields: Mapping[str, Callable[..., Any]]


def fillable() -> list[Exercise]:
    """Return the exercises whose function is a step of the engine."""
    return [exercise for exercise in exercises() if exercise.as_ops is not None]


def passed_steps(folder: Path) -> list[Step]:
    """Load every function that passes, in the order of the chapters.

    A file that has changed since it passed is graded again first, in a process of its own: what is loaded here has
    passed as it is. LoracleError where the folder is none of the course."""
    if not folder.is_dir():
        raise LoracleError(f"{folder}: there is no such folder; `loracle learn` makes one")
    progress = read_progress(folder) or Progress()
    present = [exercise for exercise in fillable() if place_in(folder, exercise).is_file()]
    keys = {exercise.name: (exercise.name, digest(place_in(folder, exercise))) for exercise in present}
    for exercise in present:
        if passed_as_it_is(folder, exercise, progress):
            _passed[keys[exercise.name]] = True
    unsure = [exercise for exercise in present if keys[exercise.name] not in _passed]
    for verdict in grade_files([(exercise, place_in(folder, exercise)) for exercise in unsure]):
        _passed[keys[verdict.exercise]] = verdict.passed
    return [step(folder, exercise) for exercise in present if _passed[keys[exercise.name]]]


def passed_as_it_is(folder: Path, exercise: Exercise, progress: Progress) -> bool:
    """Return whether the last check passed, and the file is still the same."""
    unit = progress.unit(exercise.name)
    return unit.outcome == PASSED and unit.graded == digest(place_in(folder, exercise))


def step(folder: Path, exercise: Exercise) -> Step:
    """Load one function and make fields of Ops of it."""
    file = place_in(folder, exercise)
    assert exercise.as_ops is not None
    try:
        function, _ = load_function(file.absolute(), exercise.function)
    except DoesNotRun as error:
        raise LoracleError(f"{file}: {one_line(str(error))}") from None
    return Step(exercise, exercise.as_ops(function))


def ops_of(steps: Collection[Step], without: Exercise | None = None) -> Ops:
    """Return NumPy's steps with the learner's in their fields, but for those of one exercise."""
    fields: dict[str, Any] = {}
    for each in steps:
        if each.exercise is not without:
            fields.update(each.fields)
    return replace(NUMPY, **fields)


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    missing = "" if course_folder(None).is_dir() else "there is no loracle-course here: `loracle learn` makes one"
    return Entry(NAME, WHAT, CAPABILITIES, missing)


class YourEngine(Ours):
    """An engine that says which of its steps are whose."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__(lambda: ops_of(steps))
        self.steps = steps

    def versions(self) -> dict[str, str]:
        """Return whose the steps are."""
        ours = [exercise.name for exercise in remaining(self.steps)]
        yours = ", ".join(f"{', '.join(each.fields)} ({each.exercise.name})" for each in self.steps)
        return super().versions() | {YOURS: yours, OURS: ", ".join(ours)}


def remaining(steps: Collection[Step]) -> list[Exercise]:
    """Return the exercises that are not in this engine: ours stand in their place."""
    present = {each.exercise.name for each in steps}
    return [exercise for exercise in fillable() if exercise.name not in present]


def no_longer_passing(folder: Path, steps: Collection[Step]) -> list[Exercise]:
    """Return the exercises that passed once, and do not as they are now."""
    progress = read_progress(folder) or Progress()
    return [exercise for exercise in remaining(steps) if progress.unit(exercise.name).passed]


def make(options: Mapping[str, str]) -> Ours:
    """Return the engine. EngineError where nothing is passed yet, where something does not pass any more (it would be
    right without the learner's own step), or an option is unknown."""
    options = dict(options)
    folder = options.pop("folder", None)
    if options:
        raise EngineError(f"{NAME} has no option {next(iter(options))!r}; it has folder")
    course = course_folder(Path(folder) if folder else None)
    try:
        steps = passed_steps(course)
    except LoracleError as error:
        raise EngineError(str(error)) from None
    for exercise in no_longer_passing(course, steps):
        raise EngineError(
            f"{place_in(course, exercise)} has changed since it passed, and does not pass any more: "
            f"loracle learn check {exercise.name}"
        )
    if not steps:
        raise EngineError("no step of the engine is passed yet: `loracle learn` says what to write")
    return YourEngine(steps)


def responsible(repro: Path, steps: Collection[Step]) -> list[Exercise]:
    """Return the exercises without whose function a kept failure passes, each exchanged alone for NumPy's."""

    def passes(without: Exercise | None) -> bool:
        def engine(name: str, options: Mapping[str, str]) -> Engine:
            return Ours(lambda: ops_of(steps, without))

        return replay(repro, engine)[0].verdict == "pass"

    return [each.exercise for each in steps if passes(each.exercise)]


def led_back(repro: Path) -> str:
    """Say in one sentence which chapter a failure of `--engine learn`, kept as a folder, leads back to."""
    folder = load_repro(repro).options.get("folder")
    steps = passed_steps(course_folder(Path(folder) if folder else None))
    exercises_to_blame = responsible(repro, steps)
    if not exercises_to_blame:
        return "no single step of yours explains it: two of them together, or a step of ours (then tell us)"
    parts = []
    for each in steps:
        if each.exercise in exercises_to_blame:
            parts.append(f"{each.exercise.chapter} ({', '.join(each.fields)})")
    return f"{' or '.join(parts)}: with our own step in its place the failing case passes"
