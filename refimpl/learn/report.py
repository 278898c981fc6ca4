"""A class's folders, graded again: who passed what, which mistakes they have in common, what to talk about next.

Nothing that a learner wrote is believed: files are graded in processes with a limit, and progress.json counts tries and
hints alone.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import LoracleError
from ..loading.diagnostics import one_line
from .doctor import readiness
from .exercise import Exercise
from .folder import NAME, place_in
from .grade_file import grade_files
from .progress import Progress, UnitProgress, read_progress
from .units import Unit, units
from .verdict import DOES_NOT_RUN, NOT_ATTEMPTED, RAISES, TOO_SLOW, WRONG, Verdict

NO_FILE = "no file"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".7z", ".rar")
STUCK = 3  # hints: a learner who took as many and has not passed is stuck


@dataclass(frozen=True)
class Row:
    """What one learner has of one exercise or lab."""

    who: str
    unit: str
    outcome: str
    mistake: str = ""
    says: str = ""
    tries: int = 0
    hints: int = 0
    text: str = ""  # the verdict as the learner reads it


@dataclass(frozen=True)
class Topic:
    """Something that several learners have in common."""

    unit: str
    title: str
    who: list[str]
    of: int  # learners
    what: str  # "without_adapter: two tenants ..."

    @property
    def line(self) -> str:
        """Return it in one sentence."""
        return f"{len(self.who)} of {self.of}, {self.title} ({self.unit}): {self.what}"


@dataclass(frozen=True)
class Report:
    """All rows, learner by learner, and the topics, the commonest first."""

    learners: list[str]
    units: list[str]
    rows: list[Row]
    topics: list[Topic] = field(default_factory=list)
    not_graded: list[str] = field(default_factory=list)  # labs that need what this machine lacks: nobody's mistake
    archives: list[str] = field(default_factory=list)  # that nobody has unpacked: perhaps a learner's

    def row(self, who: str, unit: str) -> Row:
        """Return one learner's row of one unit."""
        return next(row for row in self.rows if (row.who, row.unit) == (who, unit))

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self) | {"topics": [asdict(topic) | {"line": topic.line} for topic in self.topics]}


def report(
    folders: Sequence[Path],
    limit: float | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
    only: Sequence[Unit] = (),
) -> Report:
    """Grade all folders; only: these units, () for the whole course. LoracleError, before anything is graded, for one
    that is no folder, and where none of them holds a course."""
    learners = learners_in(folders)
    chosen = [unit for unit in units() if unit in only or not only]
    course = [unit for unit in chosen if isinstance(unit, Exercise) or readiness(unit).ok]
    if not any(map(course_in, learners.values())):
        names = ", ".join(map(safe_name, folders))
        raise LoracleError(f"{names}: no exercise is in there, nor in {NAME} below a learner's folder; unpack archives")
    jobs = [(who, unit, place_in(folder, unit)) for who, folder in learners.items() for unit in course]
    present = [(unit, place) for _, unit, place in jobs if gradable(unit, place)]
    verdicts = dict(zip([place for _, place in present], grade_files(present, limit, progress), strict=True))
    counts = {who: read_progress(folder) or Progress() for who, folder in learners.items()}
    rows = [row(who, unit, verdicts.get(place), counts[who].unit(unit.name)) for who, unit, place in jobs]
    not_graded = [unit.name for unit in chosen if unit not in course]
    common = topics(rows, course, len(learners))
    archives = archives_in(folders, learners)
    return Report(list(learners), [unit.name for unit in course], rows, common, not_graded, archives)


def learners_in(folders: Sequence[Path]) -> dict[str, Path]:
    """Return each learner's course folder by the learner's name: that of the folder, or of the one around
    loracle-course. A folder with such folders in it stands for all that it holds."""
    paths: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise LoracleError(f"{folder}: there is no such folder")
        inside = folders_in(folder)
        class_of = inside if not course_in(folder) and any(map(course_in, inside)) else [folder]
        paths += class_of  # with those who handed nothing in
    learners: dict[str, Path] = {}
    for path in paths:
        name = safe_name(path)
        while name in learners:
            name += "'"  # two classes may have an ada each
        learners[name] = course_in(path) or path
    return learners


def archives_in(folders: Sequence[Path], learners: Mapping[str, Path]) -> list[str]:
    """Return the archives beside the learners' folders, and in those without a course, of which no course was unpacked:
    eve.zip, unless there is a course of eve."""
    having = {name for name, folder in learners.items() if course_in(folder)}
    places = [*folders, *(folder for name, folder in learners.items() if name not in having)]
    files = {file for place in places if not course_in(place) for end in ARCHIVES for file in place.glob(f"[!.]*{end}")}
    unpacked = {name + end for name in having for end in ARCHIVES}
    return [safe_name(file) for file in sorted(files) if file.name not in unpacked]


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, but for hidden ones and what a Mac adds to an archive. LoracleError where it may
    not be read."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise LoracleError(f"{folder}: cannot be read ({error.strerror or error})") from None
    return [folder / name for name in names if os.path.isdir(folder / name)]


def course_in(folder: Path) -> Path | None:
    """Return the folder in which exercises lie: this one, or loracle-course in it, each perhaps in one of its own name,
    as an archive is unpacked; None where there are none."""
    again = folder / folder.resolve().name
    candidates = (folder, folder / NAME, again, again / NAME, folder / NAME / NAME)
    return next((path for path in candidates if any(os.path.exists(place_in(path, unit)) for unit in units())), None)


def safe_name(folder: Path) -> str:
    """Return a folder's name as it can be printed; names of folders are other people's."""
    path = folder.resolve()
    name = path.parent.name if path.name == NAME else path.name
    return one_line(name.encode("utf-8", "backslashreplace").decode())


def gradable(unit: Unit, place: Path) -> bool:
    """Return whether a learner has a file, or a lab's folder: theirs, and not a link to something else here."""
    # os.path and not Path, which raises where a folder may not be entered: one such folder is not to break a class.
    return not os.path.islink(place) and (os.path.isfile if isinstance(unit, Exercise) else os.path.isdir)(place)


def row(who: str, unit: Unit, verdict: Verdict | None, counts: UnitProgress) -> Row:
    """Return one learner's row of one unit."""
    if verdict is None:
        return Row(who, unit.name, NO_FILE)
    return Row(
        who, unit.name, verdict.outcome, verdict.mistake, verdict.says, counts.tries, counts.hints, verdict.text()
    )


HAPPENS = {RAISES: "the function raises", TOO_SLOW: "it does not come to an end", DOES_NOT_RUN: "the file does not run"}


def topics(rows: Sequence[Row], course: Sequence[Unit], of: int) -> list[Topic]:
    """Return what learners have in common, the commonest first: mistakes by name, other failures, who is stuck."""
    titles = {unit.name: unit.title for unit in course}
    groups: dict[tuple[str, str], list[str]] = {}
    for each in rows:
        if each.mistake:
            groups.setdefault((each.unit, f"{each.mistake}: {each.says}"), []).append(each.who)
        elif each.outcome in HAPPENS:
            groups.setdefault((each.unit, HAPPENS[each.outcome]), []).append(each.who)
        elif each.outcome == WRONG:
            groups.setdefault((each.unit, "wrong in a way that is not known yet"), []).append(each.who)
        if each.hints >= STUCK and each.outcome not in ("passed", NOT_ATTEMPTED, NO_FILE):
            groups.setdefault((each.unit, "took all hints and is not through"), []).append(each.who)
    common = [Topic(unit, titles[unit], who, of, what) for (unit, what), who in groups.items()]
    return sorted(common, key=lambda topic: -len(topic.who))


def passed_counts(rows: Sequence[Row]) -> Counter[str]:
    """Return how many learners passed each unit."""
    return Counter(each.unit for each in rows if each.outcome == "passed")
