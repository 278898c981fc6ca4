"""loracle learn: the course. What to read and write next, what is wrong with it, hints, an engine of one's own."""

import argparse
import os
from argparse import ArgumentTypeError
from difflib import get_close_matches
from pathlib import Path

from ..errors import LoracleError

HELP = "the course: chapters to run, functions to write, a grader that names the mistake"
EXAMPLE = """  loracle learn                       what to read and what to write next
  loracle learn check                 grade it; `check 6` or `check prefix_key` another one
  loracle learn hint                  one more step, of three
  loracle learn list                  all of the course, and how far you are
  loracle learn watch                 grade whenever the file is saved
  loracle learn reset 6               a new stub; the old file is kept
  loracle learn engine                the demo through every step that you passed
  loracle learn report ada/ grace/    a class's folders, graded again; --html FILE, --csv FILE, --only 1,2
  loracle learn notebooks DIR         the chapters as notebooks
  loracle learn doctor                what this machine has, and what a chapter or a lab lacks"""

ACTIONS = ("next", "check", "hint", "list", "reset", "watch", "engine", "report", "notebooks", "doctor")


def action_of(word: str) -> str:
    """Return it if it is one; what argparse says of a choice if not, and where a chapter's number belongs."""
    if word in ACTIONS:
        return word
    hint = "" if get_close_matches(word, ACTIONS) else f"; a chapter comes after the action: next {word}, check {word}"
    raise ArgumentTypeError(f"invalid choice: '{word}' (choose from {', '.join(map(repr, ACTIONS))}){hint}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the action, what it is about, and where the learner's files are."""
    add = parser.add_argument
    add("action", nargs="?", default="next", type=action_of, metavar="ACTION", help=f"{', '.join(ACTIONS)}")
    add(
        "names",
        nargs="*",
        metavar="NAME",
        help="a chapter's number, an exercise or a lab (default: the first that is not passed); of report: FOLDERs; "
        "of notebooks: a DIR",
    )
    add("--all", action="store_true", help="check: everything that is in the folder")
    add("--folder", type=Path, metavar="DIR", help="where your files are (default: $LORACLE_COURSE or loracle-course)")
    add("--limit", type=float, metavar="S", help="seconds for one check (default 60; a lab: 600)")
    add("--html", type=Path, metavar="FILE", help="report: write it as one page, too")
    add("--csv", type=Path, metavar="FILE", help="report: write it as a table, too")
    add("--only", metavar="NAMES", help="report: grade these alone, with commas: 1,2,lab_b")
    parser.set_defaults(after_options=after_options)


def after_options(args: argparse.Namespace, words: list[str]) -> list[str]:
    """Take an ACTION or NAMEs that stand behind an option, which argparse leaves over; return what is still unknown."""
    if any(word.startswith("-") for word in words):
        return words
    if words[0] in ACTIONS and args.action == "next" and not args.names:
        args.action, *words = words
    args.names += words
    return []


def run(args: argparse.Namespace) -> int:
    """Return 0; of check 1 where something is not passed, of doctor 1 where something is missing."""
    try:
        os.getcwd()  # Hypothesis asks for it while it is imported
    except OSError:
        raise LoracleError("the folder that you are in was deleted: cd into another one") from None
    from . import learn_actions  # Hypothesis takes 0.3 s to import, which no other command should wait for

    return learn_actions.run(args)
