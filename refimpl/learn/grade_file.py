"""Grade a learner's file in a process of its own: it may loop for ever, eat the memory, or crash.

Nothing of the learner's runs in this process, and what comes back is read as what a stranger wrote.
"""

import json
import math
import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..loading.diagnostics import one_line
from .exercise import Exercise
from .grade import LIMIT
from .grade_process import command
from .units import Unit, stub
from .verdict import DOES_NOT_RUN, NOT_ATTEMPTED, PASSED, RAISES, TOO_SLOW, WRONG, Verdict

OUTCOMES = (PASSED, NOT_ATTEMPTED, WRONG, RAISES, TOO_SLOW, DOES_NOT_RUN)
CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE", "SIGKILL")
START = 20.0  # seconds on top, for Python and NumPy to start on a busy machine
MAX_BYTES, MAX_LINES, MAX_WIDTH = 1_000_000, 60, 400  # of a verdict: what a terminal and a page can bear

KINDS: dict[str, type] = dict.fromkeys(("outcome", "consequence", "mistake", "says"), str) | {
    "lines": list,
    "links": list,
}
KINDS |= {"cases": int, "seconds": float}


@dataclass
class Graders:
    """The processes that are grading now, so that all can be ended."""

    running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def run(self, words: Sequence[str], folder: Path, limit: float) -> int | None:
        """Return the exit code (negative: the signal) of a command, or None if it was not done in time."""
        work = folder / "work"  # a file may remove the folder that it runs in, and not what it is graded with
        work.mkdir()
        variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        with open(folder / "stderr", "wb") as errors:
            process = subprocess.Popen(
                words,
                cwd=work,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=os.name == "posix",  # so that its own children can be ended with it
            )
            self.running.add(process)
            try:
                return process.wait(limit)
            except subprocess.TimeoutExpired:
                return None
            finally:
                end(process)
                self.running.discard(process)

    def stop(self) -> None:
        """End them all."""
        for process in list(self.running):
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, and those that it started."""
    try:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except OSError:  # it has ended, and left nobody behind
        pass
    process.wait()


def grade_file(unit: Unit, place: Path, limit: float | None = None, graders: Graders | None = None) -> Verdict:
    """Return the verdict on a learner's file (of a lab: folder). limit: seconds, by default LIMIT or the lab's own."""
    if isinstance(unit, Exercise) and is_stub(unit, place):
        return Verdict(unit.name, NOT_ATTEMPTED)
    if limit is None:
        limit = LIMIT if isinstance(unit, Exercise) else unit.limit
    with tempfile.TemporaryDirectory(prefix="loracle-", ignore_cleanup_errors=True) as scratch:
        target = Path(scratch) / "verdict.json"
        code = (graders or Graders()).run(command(unit.name, place, limit, target), Path(scratch), limit + START)
        if os.path.lexists(target):
            return verdict_from(target, unit.name)
        if code is None:
            return Verdict(unit.name, TOO_SLOW, [f"Not done after {limit:.0f} s: is there a loop without an end?"])
        return Verdict(unit.name, DOES_NOT_RUN, [how_it_ended(code, last_lines(Path(scratch) / "stderr"))])


def is_stub(exercise: Exercise, file: Path) -> bool:
    """Return whether a file is still what the learner was given."""
    try:
        return file.is_file() and file.read_bytes() == stub(exercise).read_bytes()  # a pipe would never end
    except OSError:
        return False


def last_lines(file: Path) -> str:
    """Return the end of a text, "" where there is none: a stranger may have written it, or taken it away."""
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - MAX_BYTES))
            return stream.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""


def how_it_ended(code: int, errors: str) -> str:
    """Say how a process ended that left no verdict; errors is the end of what it wrote to stderr."""
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        if name not in CRASHES:
            return f"A signal ended the process ({name}): your file, or what it started, has sent it."
        return f"It crashed the process ({name}): recursion without an end, too much memory, or a call into C."
    if code == 1 and "Traceback" in errors:
        why = cleaned(next((line for line in reversed(errors.splitlines()) if line[:1].isalpha()), "no reason is said"))
        return f"The grader stopped: {why}. Your file changes something that it needs, or it is a bug of ours: tell us."
    return f"It ended the process with exit code {code}: os._exit() does that, and sys.exit() in a lab."


def verdict_from(file: Path, name: str) -> Verdict:
    """Read a verdict; what has another form than ours counts as no verdict."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            raise ValueError("a pipe, which nobody ever fills, or a link to what is none of its business")
        with open(file, "rb") as stream:
            data = json.loads(stream.read(MAX_BYTES))
        values = {each.name: cleaned(data[each.name]) for each in fields(Verdict)}
        alike = all(isinstance(values[name], kind) for name, kind in KINDS.items())
        if not alike or values["outcome"] not in OUTCOMES or not math.isfinite(values["cases"] + values["seconds"]):
            raise ValueError("no verdict")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Verdict(name, DOES_NOT_RUN, ["It wrote over its own verdict."])
    values["links"] = tuple(values["links"])
    values["printed"] = str(data["printed"])[:MAX_WIDTH]  # text() quotes it
    return Verdict(**{**values, "exercise": name})


def cleaned(value: Any) -> Any:
    """Return a text, a number or a list of texts, without what would talk to a terminal, and not too long."""
    if isinstance(value, str):
        text = one_line(value)
        return text if len(text) <= MAX_WIDTH else text[:MAX_WIDTH] + " ..."
    if isinstance(value, list):
        return [cleaned(str(line)) for line in value[:MAX_LINES]]
    if isinstance(value, int | float):
        return value
    raise TypeError(f"{type(value).__name__} in a verdict")


def grade_files(
    jobs: Sequence[tuple[Unit, Path]],
    limit: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Verdict]:
    """Return the verdict of each (unit, file or folder), in order; as many at a time as there are cores."""
    graders = Graders()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        tasks = [pool.submit(grade_or_say_why_not, unit, place, limit, graders) for unit, place in jobs]
        try:
            for done, _ in enumerate(as_completed(tasks), 1):
                progress(done, len(tasks))
        except BaseException:  # Ctrl-C: none of them is waited for
            pool.shutdown(wait=False, cancel_futures=True)
            graders.stop()
            raise
    return [task.result() for task in tasks]


def grade_or_say_why_not(unit: Unit, place: Path, limit: float | None, graders: Graders) -> Verdict:
    """Return the verdict; a bug of the grader costs the others nothing."""
    try:
        return grade_file(unit, place, limit, graders)
    except RuntimeError as error:
        return Verdict(unit.name, DOES_NOT_RUN, [f"A bug of ours: {error}"])
