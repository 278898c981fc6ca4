"""What runs in the process that grade_file.py starts: a learner's file, limited in time and memory, and its verdict.

The verdict is written to a file, because stdout is the learner's as well.
"""

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..tools.units import human_bytes
from . import load
from .attempt import TooSlow, time_limit
from .exercise import Attempt, Exercise
from .grade import grade
from .load_file import OUTSIDE, DoesNotRun, check_parameters, line_in, load_function
from .units import stub
from .verdict import DOES_NOT_RUN, RAISES, TOO_SLOW, Verdict

MEMORY = 2**30  # bytes that an attempt may take on top of the grader; larger lets a laptop swap longer
FILE_SIZE = 2**26  # bytes: a loop that writes fills a disk with more


def main() -> None:
    """Grade argv: the unit's name, the learner's file or folder, the limit in seconds, where the verdict goes."""
    name, place, limit, target = sys.argv[1:]
    unit = load(name)
    if isinstance(unit, Exercise):
        limit_memory(MEMORY)
        verdict = grade_exercise(unit, Path(place), float(limit))
    else:
        verdict = unit.grade(Path(place))
    beside = Path(target).with_suffix(".part")
    beside.write_text(json.dumps(verdict.as_dict()), "utf-8")
    os.replace(beside, target)
    os._exit(0)  # without waiting for threads that the learner may have started


def grade_exercise(exercise: Exercise, file: Path, limit: float) -> Verdict:
    """Return the verdict on a file, whatever it does short of ending this process."""
    try:
        with time_limit(limit):
            function, printed = load_function(file, exercise.function)
            check_parameters(function, exercise.function, stub(exercise))
    except DoesNotRun as error:
        return Verdict(exercise.name, DOES_NOT_RUN, error.lines, printed=error.printed)
    except TooSlow:
        return Verdict(
            exercise.name, TOO_SLOW, [f"Not done after {limit:.0f} s, before the function was called: is there a loop?"]
        )
    try:
        verdict = grade(exercise, within_memory(function), limit)
    except BaseException as error:  # sys.exit() in the function, say
        place = line_in(file, error)
        if place == OUTSIDE:
            raise  # a bug of ours
        verdict = Verdict(exercise.name, RAISES, [f"{what_happened(error)} ({place} of your file)"])
    verdict.printed = printed or verdict.printed
    return verdict


class TooMuchMemory(BaseException):
    """The attempt takes too much. No Exception: a search for the smallest such case would fill the memory often."""


def within_memory(function: Attempt) -> Attempt:
    """Return the function with its MemoryError as the end of the grading."""

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except MemoryError as error:
            raise TooMuchMemory().with_traceback(error.__traceback__) from None

    return watched


def what_happened(error: BaseException) -> str:
    """Say in words what ended the function."""
    if isinstance(error, TooMuchMemory):
        return f"takes more than {human_bytes(MEMORY)} of memory"
    if isinstance(error, SystemExit):
        return "ends the program with sys.exit(): a function returns"
    return f"raises {type(error).__name__}"


def limit_memory(size: int) -> None:
    """Let this process take so many bytes more than it has, where the system can limit it (Linux); and write no file,
    stderr among them, that is larger than FILE_SIZE."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        total = pages * resource.getpagesize() + size
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (total if hard == resource.RLIM_INFINITY else min(total, hard), hard))
    except (ImportError, OSError, ValueError):
        pass


def command(name: str, place: Path, limit: float, target: Path) -> list[str]:
    """Return the command that runs main() in a new process, with the import path of this one."""
    start = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from {0} import main; main()"
    path: list[Any] = [os.path.abspath(entry) for entry in sys.path]
    words = [json.dumps(path), name, str(place.absolute()), str(limit), str(target)]
    return [sys.executable, "-c", start.format(__name__), *words]
