"""loracle check: hold an engine against the reference, and name its bug."""

import argparse
import json
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..engines import registry
from ..errors import RequestError
from ..loading.diagnostics import one_line
from ..oracle import check as checking
from ..oracle.bugs import all_mutants, mutants_for
from ..oracle.campaign import Plan, Result
from ..oracle.cases import archive
from ..oracle.diagnosis.power import DETECTED, NOT_EXERCISED, UNDETECTABLE
from ..oracle.noise.precision import TYPES
from ..oracle.reports.redact import without_secrets
from ..oracle.reports.report import CLASSES, PAGE, page, times
from ..oracle.reports.summary import summary

HELP = "hold an engine against the reference: a verdict, and the name of the bug"
EXAMPLE = """  loracle check --engine peft
  loracle check --engine mutant:rslora_ignored           a real bug, run as if it were an engine
  loracle check --engine openai_http --url http://127.0.0.1:8000 --model DIR --adapter sql=DIR2
  loracle check --engine my_module:my_function --report out
  loracle check --replay out/repro"""

COLOURS = {"pass": "green", "fail": "bold red", "undecided": "yellow"}
SYMPTOMS = 8  # that are printed; the JSON has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to check, on what, how long, and where the findings go."""
    add = parser.add_argument
    add("--engine", metavar="NAME", help="a name of `loracle engines`, mutant:NAME, or module:function")
    add("--model", default="tiny", metavar="DIR|tiny|random", help="the base (default: tiny)")
    add("--adapter", action="append", default=[], metavar="NAME=DIR", help="a PEFT folder; without any, some are made")
    add("--cases", type=int, default=50, metavar="N", help="batches (default 50)")
    add("--sequences", type=int, default=30, metavar="N", help="sequences of loads and requests (default 30)")
    add("--seed", type=int, default=0, metavar="S", help="the same seed asks the same questions (default 0)")
    add("--budget", type=float, metavar="SECONDS", help="ask no more after two thirds of this")
    add("--precision", default="float32", choices=[*TYPES, "auto"], help="what the engine is asked to compute in")
    add("--jobs", type=int, default=2, metavar="J", help="processes that make the numbers (default 2)")
    add("--no-power", action="store_true", help="do not look below the noise, nor at which bugs would have been seen")
    add("--resume", type=Path, metavar="DIR", help="keep the answers here; go on with those that are there")
    add("--report", type=Path, metavar="DIR", help="write one HTML page, the JSON and a folder that repeats a failure")
    add("--replay", type=Path, metavar="FOLDER", help="repeat one failure from the folder that it was kept in")
    add("--url", help="openai_http: where the server is")
    add("--model-name", help="openai_http: what the server calls the base")
    add(
        "--adapter-name",
        action="append",
        default=[],
        metavar="NAME=SERVED",
        help="openai_http: what it calls an adapter",
    )
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the engine; again for more")


def run(args: argparse.Namespace) -> int:
    """0 pass, 1 fail or undecided; an engine that cannot be run is a LoracleError."""
    console = Console(stderr=args.json)
    if args.replay is not None:
        result, engine = checking.replay(args.replay)
        found = write(result, engine, {}, args)
    else:
        if args.engine is None:
            raise RequestError("give --engine NAME (`loracle engines` lists them), or --replay FOLDER")
        engine, options = args.engine, engine_options(args)
        with tempfile.TemporaryDirectory() as scratch, progress(console) as told:
            work = args.resume or Path(scratch)
            make = lambda: registry.make(engine, options)  # noqa: E731
            if args.resume is not None:
                asked = {"engine": engine, "model": args.model, "dtype": args.precision, "seed": args.seed}
                archive.describe(work, asked, make().capabilities)
            result = checking.check(make, args.model, adapters(args.adapter), plan(args), work, told)
            checking.expect(result, engine, options)
            found = write(result, engine, options, args)
    if args.json:
        print(json.dumps(found, allow_nan=False))
    else:
        show(console, found, args.report and args.report / PAGE)
    return 0 if result.verdict == "pass" else 1


def plan(args: argparse.Namespace) -> Plan:
    """RequestError for a number that makes no campaign."""
    for name, least in (("cases", 0), ("sequences", 0), ("jobs", 1)):
        if getattr(args, name) < least:
            raise RequestError(f"--{name} {getattr(args, name)} must be {least} or more")
    if args.cases + args.sequences == 0:
        raise RequestError("--cases 0 and --sequences 0: nothing would be asked")
    if args.budget is not None and not args.budget > 0:
        raise RequestError(f"--budget {args.budget} must be more than 0 seconds")
    return Plan(args.cases, args.sequences, args.seed, args.budget, args.precision, args.jobs, below=not args.no_power)


def adapters(items: list[str]) -> dict[str, Path]:
    """NAME=DIR, each name once."""
    return {name: Path(folder) for name, folder in pairs("--adapter", "NAME=DIR", items).items()}


def engine_options(args: argparse.Namespace) -> dict[str, str]:
    """Everything that is the engine's own concern."""
    options = pairs("--option", "KEY=VALUE", args.option)
    for key, value in (("url", args.url), ("model-name", args.model_name)):
        if value is not None:
            options[key] = value
    if args.adapter_name:
        names = pairs("--adapter-name", "NAME=SERVED", args.adapter_name)
        options["adapters"] = ",".join(f"{name}={served}" for name, served in names.items())
    return options


def pairs(flag: str, form: str, items: list[str]) -> dict[str, str]:
    """RequestError for what is no pair, or comes twice."""
    found: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise RequestError(f"{flag} {item}: expected {form}")
        if key in found:
            raise RequestError(f"{flag} {item}: {key} was given before, as {found[key]}")
        found[key] = value
    return found


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each part of the work."""
    columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield told


def write(result: Result, engine: str, options: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """The JSON; where a report is wanted, the page as well. A failure is kept in any case, beside the report or in a
    temporary folder that stays."""
    repro = ""
    if args.report is not None:
        args.report.mkdir(parents=True, exist_ok=True)
    if result.smallest is not None:
        beside = args.report or Path(tempfile.mkdtemp(prefix="loracle-"))
        repro = str(checking.keep(result, beside / "repro", engine, options, args.seed))
    told = summary(result, engine, repro)
    by_mutant = {key: told[key] for key in ("power", "seen_from")}  # names of ours, some of which end in "token"
    found = without_secrets(told) | by_mutant
    if args.report is not None:
        (args.report / "check.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")
        (args.report / PAGE).write_text(page(found, mutants_for(list(result.testbed.paths))), "utf-8")
    return found


def show(console: Console, found: dict[str, Any], page: Path | None) -> None:
    """For people: the verdict first, then why; found: the JSON."""
    console = Console(file=console.file, stderr=console.stderr, highlight=False)
    counts = f"{found['passed']} of {found['cases']} passed, {found['failed']} failed, {found['undecided']} undecided"
    worst, fails_from = times(found["worst_noise_ratio"]), times(found["noise"]["fails_from"])
    verdict = Text(found["verdict"].upper(), style=COLOURS[found["verdict"]])
    console.print(verdict, Text(f" {found['engine']}, in {found['precision']}"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")

    def row(label: str, text: str, style: str = "") -> None:
        table.add_row(label, Text(one_line(text), style=style))

    row("cases", counts)
    row("worst row", f"{worst}; a row fails from {fails_from}")
    if found["noise"]["ceiling"] is not None:
        row("rounding", f"ends at {times(found['noise']['ceiling'])}, to first order")
    for d in found["diagnosis"]:
        kind = f" (class {d['class']}, {CLASSES[d['class']]})"
        row("it is" if d["explains"] else "nearest, not it", f"{d['name']}{kind}", "bold")
        row("", d["what"])
        row("", d["evidence"])
        if d["also"]:
            row("", f"these cases cannot tell it from {', '.join(d['also'])}")
        if d["separated_by"]:
            row("", d["separated_by"])
        for link in d["links"]:
            row("", f"seen in {link}", "dim")
    for i, s in enumerate(found["symptoms"][:SYMPTOMS]):
        row("" if i else "symptoms", f"{s['what']} ({s['count']} of {s['of']} failed)")
    if place := found["first_divergence"]:
        where = f"layer {place['layer']}, " if place["layer"] is not None else ""
        row("where", f"{where}{place['module']}, {times(place['noise_ratio'])}, by {place['by']}")
    for i, line in enumerate(found["findings"]):
        row("" if i else "findings", line)
    row("power", powerful(found["power"]))
    console.print(table)
    if found["repro"]:  # whole, to be copied
        console.print(Text(f"repeat it  loracle check --replay {shlex.quote(found['repro'])}"), soft_wrap=True)
    if page is not None:
        console.print(Text(f"the page   {page}"), soft_wrap=True)


def powerful(power: dict[str, str]) -> str:
    """How much a pass means."""
    if not power:
        return "not asked for; a pass says little without it"
    seen, faint, absent = (list(power.values()).count(k) for k in (DETECTED, UNDETECTABLE, NOT_EXERCISED))
    of_adapters = sum(name not in all_mutants() for name in power)
    kinds = f"{len(power) - of_adapters}, and {of_adapters} of these adapters"
    return (
        f"of {len(power)} mutants ({kinds}) these cases would have shown {seen}; {faint} are too faint, "
        f"{absent} were not exercised"
    )
