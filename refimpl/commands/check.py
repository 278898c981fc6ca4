"""loracle check: hold an engine against the reference, and name its bug."""

import argparse
import json
import shlex
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from ..engines import registry
from ..engines.interface import Engine
from ..errors import RequestError
from ..families import MODEL_TYPES
from ..loading.suggestion import did_you_mean
from ..oracle import check as checking
from ..oracle.bugs import CLASSES, mutants_for
from ..oracle.bugs.blind import revealed
from ..oracle.cases import archive
from ..oracle.noise.precision import TYPES
from ..oracle.reports.redact import without_secrets
from ..oracle.reports.report import PAGE, page
from ..oracle.reports.result import CampaignSettings, Result
from ..oracle.reports.summary import summary
from .check_screen import Screen, show
from .signals import on_signals, stop

HELP = "hold an engine against the reference: a verdict, and the name of the bug"
EXAMPLE = """  loracle check --engine peft
  loracle check --engine mutant:rslora_ignored           a real bug, run as if it were an engine
  loracle check --engine blind:c132                      one under a code name: find out what it is
  loracle check --engine openai_http --url http://127.0.0.1:8000 --model DIR --adapter sql=DIR2
  loracle check --engine my_module:my_function --report out
  loracle check --replay out/repro"""

QUICK_CASES, QUICK_SEQUENCES = 8, 4  # of --quick: more of either makes it slower, and a pass worth more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to check, on what, how long, and where the report goes."""
    add = parser.add_argument
    add("--engine", metavar="NAME", help="a name of `loracle engines`, mutant:NAME, blind:KEY, or module:function")
    add("--model", default="tiny", metavar="DIR|tiny|random", help="the base (default: tiny)")
    add(
        "--families",
        metavar="all|NAME,NAME",
        help="--model random: bases of these model_types, like qwen3,gpt_oss, each as much (default: Llamas, and "
        "others that the engine says it has)",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a PEFT folder; without any, random ones are drawn",
    )
    add("--cases", type=int, metavar="N", help="batches (default 50)")
    add("--sequences", type=int, metavar="N", help="sequences of loads and requests (default 30)")
    add(
        "--quick",
        action="store_true",
        help=f"{QUICK_CASES} batches, {QUICK_SEQUENCES} sequences, --no-power: for a class, and the CI of an engine",
    )
    add(
        "--without",
        metavar="NAME,NAME",
        help="what the engine does not do and is not asked for: features, operations or modules, like lora_bias,evict",
    )
    add("--seed", type=int, default=0, metavar="S", help="the same seed asks the same questions (default 0)")
    add("--budget", type=float, metavar="SECONDS", help="ask no more after two thirds of this; then explain until it")
    add("--precision", default="float32", choices=[*TYPES, "auto"], help="what the engine is asked to compute in")
    add("--jobs", type=int, default=2, metavar="J", help="processes that make the numbers (default 2)")
    add("--ray", metavar="ADDRESS|local", help="run engines and numbers on a Ray cluster; local: a new one, here")
    add("--ray-engines", type=int, default=1, metavar="N", help="--ray: engines asked side by side (default 1)")
    add(
        "--ray-resources",
        default="",
        metavar="NAME=X,NAME=X",
        help="--ray: what each engine is given, like CPU=4,GPU=1 (default CPU=1)",
    )
    add("--no-power", action="store_true", help="do not look below the noise, nor at which bugs would have been seen")
    add("--reveal", action="store_true", help="blind:KEY: say which bug it is, and run nothing")
    add("--resume", type=Path, metavar="DIR", help="keep the answers here; go on with those that are there")
    add("--report", type=Path, metavar="DIR", help="write one HTML page, the JSON and a folder that repeats a failure")
    add("--replay", type=Path, metavar="FOLDER", help="repeat one failure from the folder that it was kept in")
    add("--url", help="openai_http: where the server is")
    add("--model-name", help="openai_http: what the server calls the base")
    served = "openai_http: what it calls an adapter"
    add("--adapter-name", action="append", default=[], metavar="NAME=SERVED", help=served)
    add(
        "--clients",
        type=int,
        metavar="N",
        help="openai_http: so many requests at once, strangers' beside the batch's own",
    )
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the engine; again for more")


def run(args: argparse.Namespace) -> int:
    """Return 0 for pass, 1 for fail or undecided, 130 after Ctrl-C; an engine that cannot be run is a LoracleError."""
    console = Console(stderr=args.json)
    if args.reveal:
        return reveal(args)
    if args.engine is None and args.replay is None:
        raise RequestError("give --engine NAME (`loracle engines` lists them), or --replay FOLDER")
    if args.report is not None:
        make_writable(args.report)
    if args.replay is not None:
        result, engine = checking.replay(args.replay, registry.make, args.engine, engine_options(args))
        report = write(result, engine, {}, args, None)
    else:
        settings = campaign_settings(args)
        engine, options = args.engine, engine_options(args)
        leave_out = args.without.split(",") if args.without else []
        with ExitStack() as stack:
            stack.enter_context(on_signals(stop, signal.SIGTERM))  # as Ctrl-C
            scratch, screen = stack.enter_context(tempfile.TemporaryDirectory()), stack.enter_context(Screen())
            work = args.resume or Path(scratch)
            make = lambda: checking.narrowed(make_engine(args, engine, options), leave_out)  # noqa: E731
            if args.ray is not None:
                make = stack.enter_context(on_ray(args, make))
            if args.resume is not None:
                about = {"engine": engine, "model": args.model, "dtype": args.precision, "seed": args.seed}
                archive.describe(work, about, make().capabilities)
            result = checking.check(make, args.model, adapters(args.adapter), settings, work, screen)
            checking.expect(result, engine, options)
            report = write(result, engine, options, args, make)
    if engine == "learn" and result.verdict == "fail":
        report["chapter"] = chapter_of(args.replay or Path(report["repro"]))
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        show(console, report, args.report and args.report / PAGE)
    if result.interrupted:
        return 130
    return 0 if result.verdict == "pass" else 1


def make_engine(args: argparse.Namespace, name: str, options: dict[str, str]) -> Engine:
    """Return the engine, which under mpirun is one of ours on all ranks."""
    if args.group is None:
        return registry.make(name, options)
    from ..engines.ours_on_ranks import OursOnRanks

    return OursOnRanks(args.group, name, options)


@contextmanager
def on_ray(args: argparse.Namespace, make: Callable[[], Engine]) -> Iterator[Callable[[], Engine]]:
    """Connect to the cluster; give what makes the engine there. RequestError for resources that are none."""
    from ..oracle.ray_cluster import Engines, connected

    resources: dict[str, float] = {}
    for name, text in pairs("--ray-resources", "NAME=X", list(filter(None, args.ray_resources.split(",")))).items():
        try:
            resources[name] = float(text)
        except ValueError:
            raise RequestError(f"--ray-resources {name}={text}: {text} is no number") from None
    engines = Engines(args.ray_engines, resources)
    with connected(args.ray, engines, checking.folder_of_module(args.engine)):
        yield engines.on_the_cluster(make)


def chapter_of(repro: Path) -> str:
    """Return which chapter a failure of a learner's engine leads back to, in one sentence."""
    from ..learn.your_engine import led_back  # it brings Hypothesis, which nobody else waits for

    return led_back(repro)


def make_writable(folder: Path) -> None:
    """Make the report's folder before anything is asked; RequestError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise RequestError(f"--report {folder}: it is a file, and has to be a folder") from None
    except OSError as error:
        raise RequestError(f"--report {folder}: {error.strerror}") from None


def campaign_settings(args: argparse.Namespace) -> CampaignSettings:
    """Return the settings of the campaign; RequestError for a number that makes none."""
    if args.cases is None:
        args.cases = QUICK_CASES if args.quick else 50
    if args.sequences is None:
        args.sequences = QUICK_SEQUENCES if args.quick else 30
    for name, least in (("cases", 0), ("sequences", 0), ("jobs", 1), ("ray_engines", 1)):
        if getattr(args, name) < least:
            raise RequestError(f"--{name.replace('_', '-')} {getattr(args, name)} must be {least} or more")
    if args.ray is None and (args.ray_engines > 1 or args.ray_resources):
        raise RequestError("--ray-engines and --ray-resources are for --ray ADDRESS|local")
    if args.cases + args.sequences == 0:
        raise RequestError("--cases 0 and --sequences 0: nothing would be asked")
    if args.budget is not None and not args.budget > 0:
        raise RequestError(f"--budget {args.budget} must be more than 0 seconds")
    blind = registry.is_blind(args.engine)
    return CampaignSettings(
        args.cases,
        args.sequences,
        args.seed,
        args.budget,
        args.precision,
        args.jobs,
        args.ray_engines,
        families(args),
        args.ray is not None,
        below=not (args.no_power or args.quick or blind),  # the power is a list of names, which has this one
        name_bug=not blind,
    )


def families(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the families of --families; RequestError for an unknown one, or where no base is drawn."""
    if args.families is None:
        return ()
    if args.model != "random":
        raise RequestError("--families is for --model random: every other base has its own family")
    if args.families == "all":
        return MODEL_TYPES
    names = tuple(dict.fromkeys(args.families.split(",")))
    for name in names:
        if name not in MODEL_TYPES:
            raise RequestError(f"--families {name}: there is {', '.join(MODEL_TYPES)}{did_you_mean(name, MODEL_TYPES)}")
    return names


def reveal(args: argparse.Namespace) -> int:
    """Print which mutant is behind blind:KEY; return 0. RequestError for any other engine, EngineError for a KEY that
    there is not."""
    if args.engine is None or not registry.is_blind(args.engine):
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


def adapters(items: list[str]) -> dict[str, Path]:
    """Return the folder of each NAME=DIR, each name once."""
    return {name: Path(folder) for name, folder in pairs("--adapter", "NAME=DIR", items).items()}


def engine_options(args: argparse.Namespace) -> dict[str, str]:
    """Return everything that is the engine's own concern."""
    options = pairs("--option", "KEY=VALUE", args.option)
    for key, value in (("url", args.url), ("model-name", args.model_name), ("clients", args.clients)):
        if value is not None:
            options[key] = str(value)
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


def write(
    result: Result, engine: str, options: dict[str, str], args: argparse.Namespace, make: Callable[[], Engine] | None
) -> dict[str, Any]:
    """Return the JSON; where a report is wanted, write the page as well.

    A failure is kept in any case, beside the report or in a temporary folder that stays."""
    repro = ""
    if result.explanation.smallest is not None:
        beside = args.report or Path(tempfile.mkdtemp(prefix="loracle-"))
        repro = str(checking.keep(result, beside / "repro", engine, options, args.seed, make))
    everything = summary(result, engine, repro)
    by_mutant = {key: everything[key] for key in ("power", "seen_from")}  # names of ours, some of which end in "token"
    report = without_secrets(everything) | by_mutant
    if args.report is not None:
        (args.report / "check.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", "utf-8")
        (args.report / PAGE).write_text(page(report, mutants_for(list(result.testbed.paths))), "utf-8")
    return report
