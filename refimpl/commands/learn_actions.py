"""What `loracle learn ACTION` does for one learner: next, check, hint, list, reset, watch."""

import argparse
import json
from collections.abc import Callable

from rich.console import Console

from ..errors import LoracleError
from ..learn.folder import Course, digest, open_course, progress_of, reset
from ..learn.grade_file import grade_file, grade_files
from ..learn.units import Unit, units
from ..learn.verdict import NOT_ATTEMPTED, PASSED, Verdict
from ..learn.watch import changes
from . import learn_class, learn_engine
from .learn_screen import about, edited, finished, introduction, overview, say, show_line, show_verdict


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
