"""What `loracle learn ACTION` does for a class and its machines: report, notebooks, doctor."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..errors import LoracleError
from ..learn.doctor import Finding, examine
from ..learn.notebooks import write_notebooks
from ..learn.report import NO_FILE, Report
from ..learn.report import report as grade_class
from ..learn.report_files import SIGNS, as_csv, as_html
from ..learn.units import short_name, unit_named
from ..learn.verdict import NOT_ATTEMPTED, PASSED

STYLES = {PASSED: "green", NOT_ATTEMPTED: "dim", NO_FILE: "dim"}  # everything else is red


def report(args: argparse.Namespace) -> int:
    """Grade the folders of a class; print what to talk about next. Return 0, whatever the class has."""
    if not args.names:
        raise LoracleError("report needs FOLDERs: the learners' folders, or one that holds them all")
    for file in filter(None, (args.html, args.csv)):
        if not file.absolute().parent.is_dir():
            raise LoracleError(f"{file}: there is no folder {file.parent}")
    only = [unit_named(name.strip()) for name in args.only.split(",")] if args.only else []
    with bar(Console(stderr=True)) as progress:
        result = grade_class([Path(name) for name in args.names], args.limit, progress, only)
    for file, text in ((args.html, as_html), (args.csv, as_csv)):
        if file:
            write(file, text(result))
    if args.json:
        print(json.dumps(result.as_dict()))
    else:
        show_report(Console(), result)
    return 0


@contextmanager
def bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show how many files are graded."""
    columns = (TextColumn("grading"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("grading", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def write(file: Path, text: str) -> None:
    """Write a file; LoracleError where that cannot be done."""
    try:
        file.write_text(text, "utf-8", newline="")
    except OSError as error:
        raise LoracleError(f"{file}: cannot be written ({error.strerror or error})") from None


def show_report(console: Console, result: Report) -> None:
    """Print who has what, what went wrong, and what the class has in common."""
    console.print(matrix(result))
    console.print("  ".join(f"{sign} {outcome}" for outcome, sign in SIGNS.items()), style="dim", highlight=False)
    wrong = Table("who", "unit", "what", "tries", "hints", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for row in result.rows:
        if row.outcome not in STYLES:
            what = f"{row.outcome}: {row.mistake}" if row.mistake else row.outcome
            wrong.add_row(Text(row.who), Text(row.unit), Text(what), str(row.tries), str(row.hints))
    if wrong.row_count:
        console.print(wrong)
    attempted = any(row.outcome != NOT_ATTEMPTED for row in result.rows)
    nothing = "Nothing went wrong." if attempted else "Nothing was handed in yet."
    console.print(Text("What to talk about next", style="bold") if result.topics else Text(nothing))
    for topic in result.topics:
        console.print(Text(f"  {topic.line}"), soft_wrap=True)
    if result.not_graded:
        missing = f"Not graded on this machine (`loracle learn doctor` says why): {', '.join(result.not_graded)}"
        console.print(Text(missing), soft_wrap=True)
    if result.archives:
        packed = f"Not graded, for they are not unpacked: {', '.join(result.archives)}"
        console.print(Text(packed), style="yellow", soft_wrap=True)


def matrix(result: Report) -> Table:
    """Return a table with a row for each learner and a column for each unit."""
    table = Table("", *map(short_name, result.units), box=box.SIMPLE, padding=(0, 1, 0, 0))
    for who in result.learners:
        outcomes = [result.row(who, unit).outcome for unit in result.units]
        cells = [Text(SIGNS[outcome], style=STYLES.get(outcome, "red")) for outcome in outcomes]
        table.add_row(Text(who), *cells)
    return table


def notebooks(args: argparse.Namespace) -> int:
    """Write the chapters as notebooks. Return 0."""
    if len(args.names) != 1:
        raise LoracleError("notebooks needs a DIR to write to")
    files = write_notebooks(Path(args.names[0]))
    if args.json:
        print(json.dumps([str(file) for file in files]))
    else:
        for file in files:
            print(file)
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Show what this machine has. Return 1 if a chapter or a lab cannot be done here."""
    if args.names:
        raise LoracleError(f"doctor takes no NAME ({args.names[0]})")
    findings = examine()
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        show_findings(Console(), findings)
    return 0 if all(finding.ok for finding in findings if finding.need) else 1


def show_findings(console: Console, findings: list[Finding]) -> None:
    """Print a table, and under it what mends each thing that is missing, in one piece to be copied."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        mark = Text("ok", style="green") if finding.ok else Text("missing", style="yellow")
        table.add_row(Text(finding.what), mark, Text(finding.detail))
    console.print(table)
    for mend in dict.fromkeys(f"{finding.what}: {finding.mend}" for finding in findings if not finding.ok):
        console.print(Text(f"mend  {mend}"), soft_wrap=True)
