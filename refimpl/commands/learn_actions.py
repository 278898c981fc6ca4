"""What `loracle learn ACTION` does for one learner: next, check, hint, list, reset, watch."""

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import LoracleError
from ..learn.exercise import Exercise, Lab
from ..learn.folder import Course, digest, open_course, progress_of, reset
from ..learn.grade_file import grade_file, grade_files
from ..learn.units import Unit, opened, units
from ..learn.verdict import NOT_ATTEMPTED, PASSED, Verdict
from ..learn.watch import changes
from . import learn_class, learn_engine
from .common import cut_between_words

STYLES = {PASSED: "green", NOT_ATTEMPTED: "dim"}  # everything else is yellow: not yet


def run(args: argparse.Namespace) -> int:
    """Do the action; see commands/learn.py for the exit codes."""
    if args.limit is not None and not 0 < args.limit < 1e6:
        raise LoracleError(f"--limit {args.limit:g}: expected seconds above 0")
    for option, action in (("all", "check"), ("html", "report"), ("csv", "report"), ("only", "report")):
        if getattr(args, option) and args.action != action:
            raise LoracleError(f"--{option} belongs to `loracle learn {action}`")
    return ACTIONS[args.action](args)


def next_unit(args: argparse.Namespace) -> int:
    """Say what to read, what to edit, how long it takes, and what to run then."""
    course = open_course(args.folder)
    if not args.names and course.current() is None:
        say(args, {"unit": None}, [finished(course)])
        return 0
    unit = course.chosen(args.names)
    say(args, about(course, unit), introduction(course, unit, args))
    return 0


def finished(course: Course) -> str:
    """Say that nothing is left, and what can be done with it."""
    return f"All {len(units())} of the course are passed. `loracle learn engine` serves the demo with what you wrote."


def about(course: Course, unit: Unit) -> dict[str, Any]:
    """Return what there is to know about a unit, for JSON."""
    progress = course.progress.unit(unit.name)
    return {
        "unit": unit.name,
        "title": unit.title,
        "minutes": unit.minutes,
        "read": str(chapter_file(course, unit)),
        "opens": [str(file) for file in opened(unit)] if isinstance(unit, Exercise) else [],
        "edit": [str(file) for file in edited(course, unit)],
        "outcome": progress.outcome,
        "passed": progress.passed,
        "mistake": progress.mistake,
        "tries": progress.tries,
        "hints": progress.hints,
    }


def chapter_file(course: Course, unit: Unit) -> Path:
    """Return the learner's copy of a chapter, or of a lab's page."""
    if isinstance(unit, Lab):
        return course.place(unit) / Path(unit.page).name
    return course.folder / "chapters" / f"{unit.chapter}.py"


def edited(course: Course, unit: Unit) -> list[Path]:
    """Return the files that a unit is about."""
    if isinstance(unit, Lab):
        return [course.place(unit) / Path(name).name for name in unit.files]
    return [course.place(unit)]


def introduction(course: Course, unit: Unit, args: argparse.Namespace) -> list[str]:
    """Return the lines of `next`."""
    chapter = chapter_file(course, unit)
    lines = [f"{unit.name}: {unit.title} ({unit.minutes} minutes)"]
    if chapter.exists():
        lines.append(f"  read   {chapter}")
        if isinstance(unit, Exercise):
            lines.append(f"  run    python {shlex.quote(str(chapter))}")
    if isinstance(unit, Exercise) and unit.opens:
        lines.append(f"  opens  {', '.join(map(as_seen_from_here, opened(unit)))}")
    for i, file in enumerate(edited(course, unit)):
        missing = "" if file.exists() else f"   (is not there: `loracle learn reset {unit.name}` brings it back)"
        lines.append(f"  {'' if i else 'edit':6} {file}{missing}")
    return [*lines, f"  then   loracle learn check{again(args)}      (and `loracle learn hint{again(args)}`)"]


def as_seen_from_here(file: Path) -> str:
    """Return a file's path, shorter where it lies below the folder that one is in."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def again(args: argparse.Namespace) -> str:
    """Return what has to be given to the next command as well."""
    folder = f" --folder {shlex.quote(str(args.folder))}" if args.folder else ""
    return (f" {args.names[0]}" if args.names else "") + folder


def check(args: argparse.Namespace) -> int:
    """Grade one unit, or all; return 0 if that passed."""
    course = open_course(args.folder)
    if args.all or not (args.names or course.current()):
        return check_all(course, args)
    unit = course.chosen(args.names)
    for file in edited(course, unit):
        if not file.exists():
            raise LoracleError(f"{file} is not there: `loracle learn reset {unit.name}` brings it back")
    verdict = grade_and_note(course, unit, args.limit)
    if args.json:
        print(json.dumps(verdict.as_dict() | {"tries": course.progress.unit(unit.name).tries}))
    else:
        show_verdict(Console(), verdict, course, unit)
    return 0 if verdict.passed else 1


def grade_and_note(course: Course, unit: Unit, limit: float | None) -> Verdict:
    """Return the verdict on what the learner has, which the progress keeps."""
    place = course.place(unit)
    before = digest(place)
    verdict = grade_file(unit, place, limit)
    course.progress = progress_of(course.folder)  # a hint may have been taken in the meantime, from another terminal
    course.progress.note(verdict, before)
    course.save()
    return verdict


def show_verdict(console: Console, verdict: Verdict, course: Course, unit: Unit) -> None:
    """Print a verdict for people, and what comes after it."""
    headline, *lines = verdict.text().splitlines()
    show_line(console, headline, "bold " + STYLES.get(verdict.outcome, "yellow"))
    for line in lines:
        show_line(console, line)
    following = course.current()
    if verdict.outcome == NOT_ATTEMPTED:
        files = edited(course, unit)
        show_line(console, f"  edit {files[0] if len(files) == 1 else course.place(unit)}", "dim")
    elif verdict.passed and following is not None:
        show_line(console, f"  next: {following.name}, {following.title} (`loracle learn`)", "dim")
    elif verdict.passed:
        show_line(console, f"  {finished(course)}", "dim")


def show_line(console: Console, line: str, style: str = "") -> None:
    """Print one line; a terminal cuts it between words, and never in one: addresses and names can be copied."""
    if console.is_terminal:
        line = cut_between_words(line, console.width)
    console.print(Text(line, style=style), soft_wrap=True)


def check_all(course: Course, args: argparse.Namespace) -> int:
    """Grade everything in the folder: for those who bring their files. Return 0 if all of it passed."""
    if args.names:
        raise LoracleError("check takes --all or a NAME, not both")
    jobs = [(unit, course.place(unit)) for unit in units()]
    digests = [digest(place) if place.exists() else "" for _, place in jobs]
    verdicts = grade_files(jobs, args.limit)
    for verdict, graded in zip(verdicts, digests, strict=True):
        course.progress.note(verdict, graded)
    course.save()
    if args.json:
        print(json.dumps([verdict.as_dict() for verdict in verdicts]))
        return 0 if all(verdict.passed for verdict in verdicts) else 1
    console = Console()
    for verdict in verdicts:
        if verdict.outcome not in (PASSED, NOT_ATTEMPTED):
            show_line(console, verdict.text())
    passed = sum(verdict.passed for verdict in verdicts)
    console.print(overview(course))
    console.print(f"{passed} of {len(verdicts)} passed", highlight=False)
    return 0 if passed == len(verdicts) else 1


def hint(args: argparse.Namespace) -> int:
    """Show the next of the unit's hints, and count it."""
    course = open_course(args.folder)
    unit = course.chosen(args.names)
    progress, total = course.progress.unit(unit.name), len(unit.hints)
    if not total:
        raise LoracleError(f"{unit.name} has no hints")
    last = progress.hints >= total
    progress.hints = min(progress.hints + 1, total)
    course.save()
    text = unit.hints[progress.hints - 1]
    body = {"unit": unit.name, "hint": text, "number": progress.hints, "of": total}
    say(args, body, [f"{unit.name}, hint {progress.hints} of {total}{', the last, again' if last else ''}: {text}"])
    return 0


def overview(course: Course) -> Table:
    """Return all units as a table."""
    current = course.current()
    table = Table("", "unit", "title", "min", "outcome", "tries", "hints", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.justify = "right" if column.header in ("min", "tries", "hints") else "left"
        column.no_wrap = column.header in ("unit", "min", "tries", "hints")  # names are copied: titles are broken first
    for unit in units():
        progress = course.progress.unit(unit.name)
        table.add_row(
            ">" if unit is current else "",
            Text(unit.name),
            Text(unit.title),
            str(unit.minutes),
            Text(progress.so_far, style=STYLES.get(progress.outcome, "yellow"), overflow="fold"),
            str(progress.tries),
            f"{progress.hints}/{len(unit.hints)}",
        )
    return table


def list_units(args: argparse.Namespace) -> int:
    """Show all units and how far the learner is."""
    if args.names:
        raise LoracleError(f"list takes no NAME ({args.names[0]})")
    course = open_course(args.folder)
    if args.json:
        print(json.dumps([about(course, unit) for unit in units()]))
        return 0
    console = Console()
    console.print(overview(course))
    remaining = [unit for unit in units() if not course.progress.unit(unit.name).passed]
    hours = sum(unit.minutes for unit in remaining) / 60
    console.print(
        f"{len(units()) - len(remaining)} of {len(units())} passed; what remains takes about {hours:.1f} hours",
        highlight=False,
    )
    return 0


def reset_unit(args: argparse.Namespace) -> int:
    """Bring a unit's files back; the old ones are kept."""
    course = open_course(args.folder)
    unit = course.chosen(args.names)
    copies = reset(course, unit)
    body = {"unit": unit.name, "files": [{"file": str(file), "kept": kept and str(kept)} for file, kept in copies]}
    say(args, body, [f"{file} is new" + (f"; yours is {kept} now" if kept else "") for file, kept in copies])
    return 0


def watch(args: argparse.Namespace) -> int:
    """Grade at every save until it passes; without a NAME go on with the next unit. Ctrl-C ends it."""
    course = open_course(args.folder)
    console = Console()
    if args.names and not edited(course, course.chosen(args.names)):
        raise LoracleError(f"{course.chosen(args.names).name} has no file to be watched: check it")
    while (unit := course.chosen(args.names) if args.names else course.current()) is not None:
        if not args.json:
            for line in introduction(course, unit, args):
                show_line(console, line)
            show_line(console, "  watching it: every save is a check (Ctrl-C ends it)", "dim")
        for _ in changes(edited(course, unit)):
            verdict = grade_and_note(course, unit, args.limit)
            if args.json:
                print(json.dumps(verdict.as_dict()), flush=True)
            else:
                show_verdict(console, verdict, course, unit)
            if verdict.passed:
                break
        if args.names:
            return 0
    say(args, {"unit": None}, [finished(course)])
    return 0


def say(args: argparse.Namespace, body: Any, lines: Sequence[str]) -> None:
    """Print the body as JSON, or the lines."""
    if args.json:
        print(json.dumps(body))
        return
    console = Console()
    for i, line in enumerate(lines):
        show_line(console, line, "" if i or len(lines) == 1 else "bold")


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "next": next_unit,
    "check": check,
    "hint": hint,
    "list": list_units,
    "reset": reset_unit,
    "watch": watch,
    "engine": learn_engine.engine,
    "report": learn_class.report,
    "notebooks": learn_class.notebooks,
    "doctor": learn_class.doctor,
}
