"""The learner's folder: copies of what to read and what to edit. What a learner changed is never written over.

loracle-course/
    ch06_prefix_key.py ...   the exercises, to be edited
    labs/lab_b_shrink/ ...   a lab's page, and the files to be edited
    chapters/ handout.md     to be read and run
    test_course.py           one test for each exercise: `pytest loracle-course`
    AGENTS.md                for a learner's AI helper: teach, do not solve
    progress.json            what was tried
"""

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ..errors import LoracleError
from .exercise import Exercise
from .progress import FILE, Progress, put_aside, read_progress
from .units import PACKAGE, Unit, stub, unit_named, units
from .verdict import NOT_ATTEMPTED

NAME = "loracle-course"
TESTS = "test_course.py"
VARIABLE = "LORACLE_COURSE"
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")  # in Markdown, to a file


@dataclass
class Course:
    """A learner's folder and the progress in it."""

    folder: Path
    progress: Progress

    def place(self, unit: Unit) -> Path:
        """Return what is graded: an exercise's file, or a lab's folder."""
        return place_in(self.folder, unit)

    def save(self) -> None:
        """Write the progress; LoracleError where that cannot be done."""
        try:
            self.progress.save(self.folder)
        except OSError as error:
            raise LoracleError(f"{self.folder / FILE}: cannot be written ({error.strerror or error})") from None

    def current(self) -> Unit | None:
        """Return the first unit that is not passed."""
        return next((unit for unit in units() if not self.progress.unit(unit.name).passed), None)

    def chosen(self, names: list[str]) -> Unit:
        """Return the unit that is named, or the current one. LoracleError if all are passed, or two are named."""
        if len(names) > 1:
            raise LoracleError(f"one NAME at a time, not {' '.join(names)}")
        unit = unit_named(names[0]) if names else self.current()
        if unit is None:
            raise LoracleError("all of the course is passed: give a NAME (`loracle learn list` has them)")
        return unit


def place_in(folder: Path, unit: Unit) -> Path:
    """Return where a unit's file, or a lab's folder, lies in a learner's folder."""
    return folder / f"{unit.name}.py" if isinstance(unit, Exercise) else folder / "labs" / unit.name


def course_folder(option: Path | None) -> Path:
    """Return the folder that is meant: --folder, LORACLE_COURSE, the one that we are in, or loracle-course here."""
    if option or os.environ.get(VARIABLE):
        return option or Path(os.environ[VARIABLE])
    here = Path.cwd()
    around = (folder for folder in (here, *here.parents) if (folder / FILE).exists() and (folder / TESTS).exists())
    course = next(around, None)
    return Path(NAME) if course is None else Path(os.path.relpath(course))


def open_course(option: Path | None) -> Course:
    """Return the learner's course, made or completed first. LoracleError where the folder cannot be written."""
    folder = course_folder(option)
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            line = f"made {folder}{os.sep}: the files of the course, yours to edit ({VARIABLE} or --folder move it)"
            print(line, file=sys.stderr)
        course = Course(folder, progress_of(folder))
        complete(course)
    except OSError as error:
        raise LoracleError(f"{folder}: cannot hold the course ({error.strerror or error})") from None
    return course


def progress_of(folder: Path) -> Progress:
    """Return the progress in a folder; a damaged file is put aside, with a line that says so."""
    progress = read_progress(folder)
    if progress is None:
        name = put_aside(folder).name
        print(f"{folder / FILE} was damaged: it is {name} now, and counting starts anew", file=sys.stderr)
        return Progress()
    return progress


def complete(course: Course) -> None:
    """Copy what is missing, and renew what the learner has not changed since it was copied."""
    before = dict(course.progress.copies)
    for name, (source, editable) in sources().items():
        target = course.folder / name
        new, copied = content_for(source), before.get(name)
        if target.exists():
            present = digest(target)
            if present != hashlib.sha256(new).hexdigest() and present != copied:
                continue  # the learner's
        elif editable and copied:
            continue  # given once, and deleted: `reset` brings it back
        if write(target, new) or copied is None:
            course.progress.copies[name] = hashlib.sha256(new).hexdigest()
    if course.progress.copies != before:
        course.save()


def sources() -> dict[str, tuple[Path, bool]]:
    """Return for each name in the learner's folder where it comes from, and whether it is to be edited."""
    files = {
        "AGENTS.md": (PACKAGE / "for_learners" / "AGENTS.md", False),
        TESTS: (PACKAGE / "for_learners" / "course_tests.py", False),
    }
    if (PACKAGE / "handout.md").exists():
        files["handout.md"] = (PACKAGE / "handout.md", False)
    appendix = PACKAGE / "chapters" / "appendix_pictures.py"  # has no exercise
    files[f"chapters/{appendix.name}"] = (appendix, False)
    for unit in units():
        if isinstance(unit, Exercise):
            files[f"{unit.name}.py"] = (stub(unit), True)
            files[f"chapters/{unit.chapter}.py"] = (PACKAGE / "chapters" / f"{unit.chapter}.py", False)
        else:
            files[f"labs/{unit.name}/{Path(unit.page).name}"] = (PACKAGE / unit.page, False)
            for name in unit.files:
                files[f"labs/{unit.name}/{Path(name).name}"] = (PACKAGE / "labs" / name, True)
    return {name: source for name, source in files.items() if source[0].exists()}


def content_for(source: Path) -> bytes:
    """Return what a file holds; a page's relative links lead to the files of this installation."""
    if source.suffix != ".md":
        return source.read_bytes()

    def absolute(match: re.Match[str]) -> str:
        file, anchor = (source.parent / match[1]).resolve(), match[2] or ""
        return f"]({file.as_uri()}{anchor})" if file.exists() else match[0]

    return LINK.sub(absolute, source.read_text("utf-8")).encode()


def write(target: Path, content: bytes) -> bool:
    """Write a file beside its place and rename it; return False where it had this content."""
    if target.exists() and target.read_bytes() == content:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.write_bytes(content)
    os.replace(beside, target)
    return True


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder with their names."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    content = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content.update(str(file.relative_to(path)).encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return content.hexdigest()


def reset(course: Course, unit: Unit) -> list[tuple[Path, Path | None]]:
    """Give the learner a unit's files anew; return each of them, and where what was there is kept now."""
    outcomes = []
    prefix = f"{unit.name}.py" if isinstance(unit, Exercise) else f"labs/{unit.name}/"
    for name, (source, editable) in sources().items():
        if editable and name.startswith(prefix):
            target = course.folder / name
            new = content_for(source)
            unlike = os.path.lexists(target) and digest(target) != hashlib.sha256(new).hexdigest()
            kept = keep(target) if unlike else None
            write(target, new)
            course.progress.copies[name] = digest(target)
            outcomes.append((target, kept))
    progress = course.progress.unit(unit.name)
    progress.outcome, progress.mistake, progress.graded, progress.passed = NOT_ATTEMPTED, "", "", False
    course.save()
    return outcomes


def keep(file: Path) -> Path:
    """Rename a file to the first name with a number that is free, and return it."""
    numbered = (file.with_name(f"{file.stem}.before-{number}{file.suffix}") for number in count(1))
    target = next(path for path in numbered if not path.exists())
    os.replace(file, target)
    return target
