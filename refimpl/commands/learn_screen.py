"""What `loracle learn` says of a unit: what to read and edit, the verdict, the table of all; for people and as JSON."""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..learn.exercise import Exercise, Lab
from ..learn.folder import Course
from ..learn.units import Unit, opened, units
from ..learn.verdict import NOT_ATTEMPTED, PASSED, Verdict
from .common import cut_between_words

STYLES = {PASSED: "green", NOT_ATTEMPTED: "dim"}  # everything else is yellow: not yet


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
        lines.append(f"  afterwards, in the package: {', '.join(map(as_seen_from_here, opened(unit)))}")
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


def say(args: argparse.Namespace, body: Any, lines: Sequence[str]) -> None:
    """Print the body as JSON, or the lines."""
    if args.json:
        print(json.dumps(body))
        return
    console = Console()
    for i, line in enumerate(lines):
        show_line(console, line, "" if i or len(lines) == 1 else "bold")
