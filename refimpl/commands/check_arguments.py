"""What `loracle check` is told: its flags, and what they mean to a campaign. RequestError for what makes none."""

import argparse
import os
import tempfile
from pathlib import Path

from ..engines import registry
from ..errors import RequestError
from ..families import MODEL_TYPES
from ..loading.suggestion import did_you_mean
from ..oracle.noise.precision import TYPES
from ..oracle.reports.result import CampaignSettings

QUICK_CASES, QUICK_SEQUENCES = 8, 4  # of --quick: more of either makes it slower, and a pass worth more
LEAST_BUDGET = 0.1  # seconds
MOST_JOBS = 8  # processes for each processor of this machine; more: they only wait for one another
OF_CAMPAIGNS = ("cases", "sequences", "adapter", "quick", "without", "families", "ray", "resume")  # not of --replay
QUICK_SECONDS = 15.0  # of the processor, in which it looks for a cause; more: slower, and more are found


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
        help=f"{QUICK_CASES} batches, {QUICK_SEQUENCES} sequences, --no-power, {QUICK_SECONDS:g} s for a cause: "
        "for a class, and the CI of an engine",
    )
    add(
        "--without",
        metavar="NAME,NAME",
        help="what the engine does not do and is not asked for: features, operations or modules, like lora_bias,evict",
    )
    add("--seed", type=int, default=0, metavar="S", help="the same seed asks the same questions (default 0)")
    add(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="ask no more after two thirds of this; be done after all of it, whatever the engine does",
    )
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


def seconds(args: argparse.Namespace) -> float | None:
    """Return the budget; RequestError if it is none."""
    if args.budget is not None and not args.budget >= LEAST_BUDGET:
        raise RequestError(f"--budget {args.budget} must be {LEAST_BUDGET:g} seconds or more")
    return args.budget


def check_replay(args: argparse.Namespace) -> None:
    """RequestError where something is said of a campaign beside --replay, which asks what was kept."""
    for name in OF_CAMPAIGNS:
        if getattr(args, name):
            raise RequestError(f"--replay asks what was kept, and --{name} is for something else")


def campaign_settings(args: argparse.Namespace) -> CampaignSettings:
    """Return the settings of the campaign; RequestError for a number that makes none."""
    if args.cases is None:
        args.cases = QUICK_CASES if args.quick else 50
    if args.sequences is None:
        args.sequences = QUICK_SEQUENCES if args.quick else 30
    for name, least in (("cases", 0), ("sequences", 0), ("jobs", 1), ("ray_engines", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise RequestError(f"--{name.replace('_', '-')} {getattr(args, name)} must be {least} or more")
    if args.jobs > MOST_JOBS * (os.cpu_count() or 1):
        raise RequestError(f"--jobs {args.jobs}: this machine has {os.cpu_count()} processors")
    if args.ray is None and (args.ray_engines > 1 or args.ray_resources):
        raise RequestError("--ray-engines and --ray-resources are for --ray ADDRESS|local")
    if args.cases + args.sequences == 0:
        raise RequestError("--cases 0 and --sequences 0: nothing would be asked")
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
        cause_seconds=QUICK_SECONDS if args.quick else None,
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
