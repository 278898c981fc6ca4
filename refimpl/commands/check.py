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
from ..oracle.bugs import CLASSES, all_mutants, mutants_for
from ..oracle.bugs.blind import revealed
from ..oracle.cases import archive
from ..oracle.diagnosis.power import DETECTED, NOT_EXERCISED, UNDETECTABLE
from ..oracle.noise.precision import TYPES
from ..oracle.reports.redact import without_secrets
from ..oracle.reports.report import PAGE, page, times
from ..oracle.reports.result import CampaignSettings, Result
from ..oracle.reports.summary import summary
from ..tools.units import human_bytes

HELP = "hold an engine against the reference: a verdict, and the name of the bug"
EXAMPLE = """  loracle check --engine peft
  loracle check --engine mutant:rslora_ignored           a real bug, run as if it were an engine
  loracle check --engine blind:c132                      one under a code name: find out what it is
  loracle check --engine openai_http --url http://127.0.0.1:8000 --model DIR --adapter sql=DIR2
  loracle check --engine my_module:my_function --report out
  loracle check --replay out/repro"""

COLOURS = {"pass": "green", "fail": "bold red", "undecided": "yellow"}
SYMPTOMS = 8  # that are printed; the JSON has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to check, on what, how long, and where the report goes."""
    add = parser.add_argument
    add("--engine", metavar="NAME", help="a name of `loracle engines`, mutant:NAME, blind:KEY, or module:function")
    add("--model", default="tiny", metavar="DIR|tiny|random", help="the base (default: tiny)")
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a PEFT folder; without any, random ones are drawn",
    )
    add("--cases", type=int, default=50, metavar="N", help="batches (default 50)")
    add("--sequences", type=int, default=30, metavar="N", help="sequences of loads and requests (default 30)")
    add("--seed", type=int, default=0, metavar="S", help="the same seed asks the same questions (default 0)")
    add("--budget", type=float, metavar="SECONDS", help="ask no more after two thirds of this")
    add("--precision", default="float32", choices=[*TYPES, "auto"], help="what the engine is asked to compute in")
    add("--jobs", type=int, default=2, metavar="J", help="processes that make the numbers (default 2)")
    add("--no-power", action="store_true", help="do not look below the noise, nor at which bugs would have been seen")
    add("--reveal", action="store_true", help="blind:KEY: say which bug it is, and run nothing")
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
    """Return 0 for pass, 1 for fail or undecided; an engine that cannot be run is a LoracleError."""
    console = Console(stderr=args.json)
    if args.reveal:
        return reveal(args)
    if args.replay is not None:
        result, engine = checking.replay(args.replay)
        report = write(result, engine, {}, args)
    else:
        if args.engine is None:
            raise RequestError("give --engine NAME (`loracle engines` lists them), or --replay FOLDER")
        engine, options = args.engine, engine_options(args)
        with tempfile.TemporaryDirectory() as scratch, progress(console) as advance:
            work = args.resume or Path(scratch)
            make = lambda: registry.make(engine, options)  # noqa: E731
            if args.resume is not None:
                about = {"engine": engine, "model": args.model, "dtype": args.precision, "seed": args.seed}
                archive.describe(work, about, make().capabilities)
            result = checking.check(make, args.model, adapters(args.adapter), campaign_settings(args), work, advance)
            checking.expect(result, engine, options)
            report = write(result, engine, options, args)
    if engine == "learn" and result.verdict == "fail":
        report["chapter"] = chapter_of(args.replay or Path(report["repro"]))
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        show(console, report, args.report and args.report / PAGE)
    return 0 if result.verdict == "pass" else 1


def chapter_of(repro: Path) -> str:
    """Return which chapter a failure of a learner's engine leads back to, in one sentence."""
    from ..learn.your_engine import led_back  # it brings Hypothesis, which nobody else waits for

    return led_back(repro)


def campaign_settings(args: argparse.Namespace) -> CampaignSettings:
    """Return the settings of the campaign; RequestError for a number that makes none."""
    for name, least in (("cases", 0), ("sequences", 0), ("jobs", 1)):
        if getattr(args, name) < least:
            raise RequestError(f"--{name} {getattr(args, name)} must be {least} or more")
    if args.cases + args.sequences == 0:
        raise RequestError("--cases 0 and --sequences 0: nothing would be asked")
    if args.budget is not None and not args.budget > 0:
        raise RequestError(f"--budget {args.budget} must be more than 0 seconds")
    blind = is_blind(args.engine)
    return CampaignSettings(
        args.cases,
        args.sequences,
        args.seed,
        args.budget,
        args.precision,
        args.jobs,
        below=not (args.no_power or blind),  # the power is a list of names, which has this one
        name_bug=not blind,
    )


def reveal(args: argparse.Namespace) -> int:
    """Print which mutant is behind blind:KEY; return 0. RequestError for any other engine, EngineError for a KEY that
    there is not."""
    if args.engine is None or not is_blind(args.engine):
        raise RequestError("--reveal is for --engine blind:KEY: every other engine has its own name")
    mutant = revealed(args.engine)
    about = {"engine": args.engine, "name": mutant.name, "class": mutant.family, "what": mutant.what}
    if args.json:
        print(json.dumps(about | {"links": list(mutant.links)}))
        return 0
    print(f"{args.engine} is {mutant.name} (class {mutant.family}, {CLASSES[mutant.family]}): {mutant.what}")
    for link in mutant.links:
        print(f"  seen in {link}")
    print(f"  its name from its numbers: loracle check --engine {registry.MUTANT}{shlex.quote(mutant.name)}")
    return 0


def is_blind(engine: str) -> bool:
    """Is this engine one whose bug is to be found out?"""
    return engine.startswith(registry.BLIND)


def adapters(items: list[str]) -> dict[str, Path]:
    """Return the folder of each NAME=DIR, each name once."""
    return {name: Path(folder) for name, folder in pairs("--adapter", "NAME=DIR", items).items()}


def engine_options(args: argparse.Namespace) -> dict[str, str]:
    """Return everything that is the engine's own concern."""
    options = pairs("--option", "KEY=VALUE", args.option)
    for key, value in (("url", args.url), ("model-name", args.model_name)):
        if value is not None:
            options[key] = value
    if args.adapter_name:
        names = pairs("--adapter-name", "NAME=SERVED", args.adapter_name)
        options["adapters"] = ",".join(f"{name}={served}" for name, served in names.items())
    return options


def pairs(flag: str, form: str, items: list[str]) -> dict[str, str]:
    """Return key -> value of each item; RequestError for what is no pair, or comes twice."""
    values: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise RequestError(f"{flag} {item}: expected {form}")
        if key in values:
            raise RequestError(f"{flag} {item}: {key} was given before, as {values[key]}")
        values[key] = value
    return values


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each part of the work."""
    columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def write(result: Result, engine: str, options: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Return the JSON; where a report is wanted, write the page as well.

    A failure is kept in any case, beside the report or in a temporary folder that stays."""
    repro = ""
    if args.report is not None:
        args.report.mkdir(parents=True, exist_ok=True)
    if result.explanation.smallest is not None:
        beside = args.report or Path(tempfile.mkdtemp(prefix="loracle-"))
        repro = str(checking.keep(result, beside / "repro", engine, options, args.seed))
    everything = summary(result, engine, repro)
    by_mutant = {key: everything[key] for key in ("power", "seen_from")}  # names of ours, some of which end in "token"
    report = without_secrets(everything) | by_mutant
    if args.report is not None:
        (args.report / "check.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", "utf-8")
        (args.report / PAGE).write_text(page(report, mutants_for(list(result.testbed.paths))), "utf-8")
    return report


def show(console: Console, report: dict[str, Any], page: Path | None) -> None:
    """Print the verdict first, then why, for people; report: the JSON."""
    console = Console(file=console.file, stderr=console.stderr, highlight=False)
    counts = (
        f"{report['passed']} of {report['cases']} passed, {report['failed']} failed, {report['undecided']} undecided"
    )
    worst, fails_from = times(report["worst_noise_ratio"]), times(report["noise"]["fails_from"])
    verdict = Text(report["verdict"].upper(), style=COLOURS[report["verdict"]])
    console.print(verdict, Text(f" {report['engine']}, in {report['precision']}"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")

    def row(label: str, text: str, style: str = "") -> None:
        table.add_row(label, Text(one_line(text), style=style))

    row("cases", counts)
    row("worst row", f"{worst}; a row fails from {fails_from}")
    if report["noise"]["ceiling"] is not None:
        row("rounding", f"ends at {times(report['noise']['ceiling'])}, to first order")
    for diagnosis in report["diagnosis"]:
        for label, text, style in diagnosis_rows(diagnosis):
            row(label, text, style)
    for i, symptom in enumerate(report["symptoms"][:SYMPTOMS]):
        row("" if i else "symptoms", f"{symptom['what']} ({symptom['count']} of {symptom['of']} failed)")
    if place := report["first_divergence"]:
        where = f"layer {place['layer']}, " if place["layer"] is not None else ""
        row("where", f"{where}{place['module']}, {times(place['noise_ratio'])}, by {place['by']}")
    if "chapter" in report:
        row("chapter", report["chapter"], "bold")
    for i, line in enumerate(report["findings"]):
        row("" if i else "findings", line)
    if is_blind(report["engine"]):
        row("it is", f"for you to find out; then: loracle check --engine {report['engine']} --reveal")
    else:
        row("power", powerful(report["power"]))
    console.print(table)
    if report["repro"]:  # in one piece, to be copied
        console.print(Text(f"repeat it  loracle check --replay {shlex.quote(report['repro'])}"), soft_wrap=True)
        if page is None:
            size = bytes_of(Path(report["repro"]))
            console.print(Text(f"           ({size}, yours to remove; with --report DIR it is in DIR)"), soft_wrap=True)
    if page is not None:
        console.print(Text(f"the page   {page}"), soft_wrap=True)


def diagnosis_rows(diagnosis: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (label, text, style) of what is said about one explanation."""
    name = f"{diagnosis['name']} (class {diagnosis['class']}, {CLASSES[diagnosis['class']]})"
    yield "it is" if diagnosis["explains"] else "nearest, not it", name, "bold"
    yield "", diagnosis["what"], ""
    yield "", diagnosis["evidence"], ""
    if diagnosis["also"]:
        yield "", f"these cases cannot tell it from {', '.join(diagnosis['also'])}", ""
    if diagnosis["separated_by"]:
        yield "", diagnosis["separated_by"], ""
    for link in diagnosis["links"]:
        yield "", f"seen in {link}", "dim"


def bytes_of(folder: Path) -> str:
    """Return the size of everything in a folder, for people."""
    return human_bytes(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def powerful(power: dict[str, str]) -> str:
    """Return how much a pass means, in one line."""
    if not power:
        return "not asked for; a pass says little without it"
    shown, faint, absent = (list(power.values()).count(k) for k in (DETECTED, UNDETECTABLE, NOT_EXERCISED))
    of_adapters = sum(name not in all_mutants() for name in power)
    kinds = f"{len(power) - of_adapters}, and {of_adapters} of these adapters"
    return (
        f"of {len(power)} mutants ({kinds}) these cases would have shown {shown}; {faint} are too faint, "
        f"{absent} were not exercised"
    )
