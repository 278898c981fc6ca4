"""loracle engines: what can be checked, what each can show, whether it is here, and how to get it."""

import argparse
import dataclasses
import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..engines import registry
from ..engines.environments import RECIPES, set_up
from ..engines.interface import Entry
from ..errors import LoracleError

HELP = "list the engines that can be checked, or set one up in an environment of its own"
EXAMPLE = """  loracle engines                 what is here, and what each can show
  loracle engines setup vllm      makes its environment; what was interrupted goes on where it stopped"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """setup NAME, and what is listed."""
    parser.add_argument("action", nargs="?", choices=["setup"], help="make the environment of an engine")
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"which: {', '.join(RECIPES)}")
    parser.add_argument("--mutants", action="store_true", help="list the mutants, too (--json always does)")


def run(args: argparse.Namespace) -> int:
    """0; 2 if an environment cannot be made."""
    if args.action == "setup":
        return setup(args)
    entries = registry.entries()
    if args.json:
        print(json.dumps([as_json(entry) for entry in entries]))
    else:
        show(Console(), entries, args.mutants)
    return 0


def setup(args: argparse.Namespace) -> int:
    """A line for each step, on stdout for people."""
    if args.name not in RECIPES:
        asked = "setup needs a NAME" if args.name is None else f"{args.name!r} has no environment to set up"
        raise LoracleError(f"{asked}; these have one: {', '.join(RECIPES)}")
    folder = set_up(RECIPES[args.name], (lambda line: None) if args.json else (lambda line: print(line, flush=True)))
    if args.json:
        print(json.dumps({"name": args.name, "folder": str(folder)}))
    return 0


def as_json(entry: Entry) -> dict[str, Any]:
    """Sets as sorted lists."""
    found = dataclasses.asdict(entry)
    capabilities = found["capabilities"]
    for key in ("features", "operations"):
        capabilities[key] = sorted(capabilities[key])
    return found | {
        "installed": not entry.missing,
        "setup": f"loracle engines setup {entry.name}" if entry.setup else "",
    }


def show(console: Console, entries: list[Entry], mutants: bool) -> None:
    """A table, and under it what is missing."""
    listed = [e for e in entries if mutants or not e.name.startswith(registry.MUTANT)]
    table = Table("engine", "here", "shows", "mixes", "dtypes", "can be asked to", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for e in listed:
        c = e.capabilities
        rows = "" if c.prompt_rows else ", of produced tokens"
        table.add_row(
            Text(e.name),
            Text("no", style="yellow") if e.missing else Text("yes", style="green"),
            f"{c.readout}{f' {c.top_k}' if c.top_k else ''}{rows}",
            "yes" if c.mixed else "no",
            " ".join(c.dtypes),
            " ".join(sorted(c.operations)),
        )
    console.print(table)
    for e in listed:
        console.print(Text(f"{e.name}: ", style="bold") + Text(e.what))
        if e.missing:
            console.print(Text(f"  {e.missing}", style="yellow"))
    if not mutants:
        console.print(
            f"and {len(entries) - len(listed)} mutants of our own engine, as mutant:NAME: --mutants lists them"
        )
