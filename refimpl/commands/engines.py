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
from ..engines.environments import set_up
from ..engines.interface import Entry
from ..engines.recipes import RECIPES
from ..errors import LoracleError
from ..loading.suggestion import did_you_mean

HELP = "list the engines that can be checked, or set one up in an environment of its own"
EXAMPLE = """  loracle engines                 what is here, and what each can show
  loracle engines setup vllm      makes its environment; what was interrupted goes on where it stopped"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `setup NAME`, and what is listed."""
    parser.add_argument("action", nargs="?", choices=["setup"], help="make the environment of an engine")
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"which: {', '.join(RECIPES)}")
    parser.add_argument("--mutants", action="store_true", help="list the mutants, too (--json always does)")


def run(args: argparse.Namespace) -> int:
    """Return 0; 2 if an environment cannot be made."""
    if args.action == "setup":
        return setup(args)
    entries = registry.entries()
    if args.json:
        print(json.dumps([as_json(entry) for entry in entries]))
    else:
        show(Console(), entries, args.mutants)
    return 0


def setup(args: argparse.Namespace) -> int:
    """Make an environment, with a line for each step on stdout, for people."""
    if args.name not in RECIPES:
        mistake = "setup needs a NAME" if args.name is None else f"{args.name!r} has no environment to set up"
        raise LoracleError(f"{mistake}; these have one: {', '.join(RECIPES)}{did_you_mean(args.name or '', RECIPES)}")
    folder = set_up(RECIPES[args.name], (lambda line: None) if args.json else (lambda line: print(line, flush=True)))
    if args.json:
        print(json.dumps({"name": args.name, "folder": str(folder)}))
    return 0


def as_json(entry: Entry) -> dict[str, Any]:
    """Return the entry with its sets as sorted lists."""
    row = dataclasses.asdict(entry)
    capabilities = row["capabilities"]
    for key in ("features", "operations"):
        capabilities[key] = sorted(capabilities[key])
    return row | {
        "installed": not entry.missing,
        "setup": f"loracle engines setup {entry.name}" if entry.setup else "",
    }


def show(console: Console, entries: list[Entry], mutants: bool) -> None:
    """Print a table, and under it what is missing."""
    listed = [entry for entry in entries if mutants or not entry.name.startswith(registry.MUTANT)]
    table = Table("engine", "here", "shows", "mixes", "dtypes", "can be asked to", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for entry in listed:
        can = entry.capabilities
        rows = "" if can.prompt_rows else ", of produced tokens"
        table.add_row(
            Text(entry.name),
            Text("no", style="yellow") if entry.missing else Text("yes", style="green"),
            f"{can.readout}{f' {can.top_k}' if can.top_k else ''}{rows}",
            "yes" if can.mixed else "no",
            " ".join(can.dtypes),
            " ".join(sorted(can.operations)),
        )
    console.print(table)
    for entry in listed:
        console.print(Text(f"{entry.name}: ", style="bold") + Text(entry.what))
        if entry.missing:
            console.print(Text(f"  {entry.missing}", style="yellow"))
    if not mutants:
        console.print(
            f"and {len(entries) - len(listed)} mutants of our own engine, as mutant:NAME: --mutants lists them"
        )
