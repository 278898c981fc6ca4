"""loracle check: hold an engine against the reference, and name its bug."""

import argparse
import atexit
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from ..engines import registry
from ..engines.interface import Engine, EngineError
from ..engines.worker import kill_all
from ..errors import RequestError
from ..oracle import check as checking
from ..oracle.bugs import CLASSES, mutants_for
from ..oracle.bugs.blind import revealed
from ..oracle.cases import archive
from ..oracle.keep import folder_of_module, keep
from ..oracle.reports.redact import without_secrets
from ..oracle.reports.report import PAGE, page
from ..oracle.reports.result import Result
from ..oracle.reports.summary import summary
from ..oracle.watchdog import BUDGET, GRACE, SIGNAL, Watchdog
from .check_arguments import (
    adapters,
    add_arguments,
    campaign_settings,
    check_replay,
    engine_options,
    make_writable,
    pairs,
    seconds,
)
from .check_screen import Screen, show
from .signals import STOP, on_signals, stop

end_process = os._exit  # while a function is asked, it is an exception for all others (engines/function.py)

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "hold an engine against the reference: a verdict, and the name of the bug"
EXAMPLE = """  loracle check --engine peft
  loracle check --engine mutant:rslora_ignored           a real bug, run as if it were an engine
  loracle check --engine blind:c132                      one under a code name: find out what it is
  loracle check --engine openai_http --url http://127.0.0.1:8000 --model DIR --adapter sql=DIR2
  loracle check --engine my_module:my_function --report out
  loracle check --replay out/repro"""


def run(args: argparse.Namespace) -> int:
    """Return 0 for pass, 1 for fail or undecided, 130 after Ctrl-C; an engine that cannot be run is a LoracleError."""
    if args.reveal:
        return reveal(args)
    if args.engine is None and args.replay is None:
        raise RequestError("give --engine NAME (`loracle engines` lists them), or --replay FOLDER")
    if args.replay is not None:
        check_replay(args)
    budget, out = seconds(args), sys.stdout  # an engine that is a function has another one while it is asked
    if args.report is not None:
        make_writable(args.report)
    with ExitStack() as stack:
        stack.enter_context(on_signals(stop, *STOP))  # once: a second Ctrl-C takes no report away
        scratch, screen = stack.enter_context(tempfile.TemporaryDirectory()), stack.enter_context(Screen())
        leave = partial(say_what_is_known, args, screen, Path(scratch), out)
        watch = stack.enter_context(Watchdog(budget, leave))
        try:
            result, engine, repro = (replayed if args.replay else checked)(args, Path(scratch), screen, watch)
        except KeyboardInterrupt:  # before there was anything to judge
            if watch.stopped_by == BUDGET:
                raise EngineError(watch.why()) from None
            print(f"loracle check: {watch.why()}, before anything was known", file=sys.stderr)
            raise
    report = write(result, engine, repro, args)
    if engine == "learn" and result.verdict == "fail":
        report["chapter"] = chapter_of(args.replay or Path(report["repro"]))
    say(report, args, out)
    return exit_code(result)


def exit_code(result: Result) -> int:
    """Return the process's, for a result."""
    return 130 if result.stopped_by == SIGNAL else 0 if result.verdict == "pass" else 1


def checked(args: argparse.Namespace, scratch: Path, screen: Screen, watch: Watchdog) -> tuple[Result, str, str]:
    """Run the campaign; return its result, the engine's name, and the folder of the smallest failure or ""."""
    settings, engine, options = campaign_settings(args), args.engine, engine_options(args)
    leave_out, work = args.without.split(",") if args.without else [], args.resume or scratch
    make = lambda: checking.narrowed(make_engine(args, engine, options), leave_out)  # noqa: E731
    with ExitStack() as stack:
        if args.ray is not None:
            make = stack.enter_context(on_ray(args, make))
        if args.resume is not None:
            about = {"engine": engine, "model": args.model, "dtype": args.precision, "seed": args.seed}
            archive.describe(work, about, make().capabilities)
        result = checking.check(make, args.model, adapters(args.adapter), settings, work, screen, watch=watch)
        checking.expect(result, engine, options)
        return result, engine, kept(result, engine, options, args, make, watch)


def replayed(args: argparse.Namespace, scratch: Path, screen: Screen, watch: Watchdog) -> tuple[Result, str, str]:
    """Ask what was kept once more; return the result, the engine's name, and ""."""
    return *checking.replay(args.replay, registry.make, args.engine, engine_options(args), watch), ""


def say(report: dict[str, Any], args: argparse.Namespace, out: TextIO) -> None:
    """Print the JSON, or what people read."""
    if args.json:
        print(json.dumps(report, allow_nan=False), file=out)
    else:
        show(Console(file=out), report, args.report and args.report / PAGE)


def say_what_is_known(args: argparse.Namespace, screen: Screen, scratch: Path, out: TextIO, watch: Watchdog) -> None:
    """Say it from a thread of its own, and end the process: the engine does not let go of the main thread."""
    code = 2
    try:
        screen.bars.stop()
        if (result := watch.result_by_now()) is None:
            print(f"loracle check: {watch.why()}", file=sys.stderr)
        else:
            repro, options = "", engine_options(args)
            if result.explanation.answers:  # then nobody is asked
                repro = kept(result, args.engine, options, args, lambda: make_engine(args, args.engine, options), watch)
            say(write(result, args.engine, repro, args), args, out)
            code = exit_code(result)
        out.flush()
        sys.stderr.flush()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        kill_all()  # the workers of engines, and then those that make the numbers
        for process in multiprocessing.active_children():
            process.kill()
        tidying = threading.Thread(target=atexit._run_exitfuncs, daemon=True)  # somebody's may wait for the engine
        tidying.start()
        tidying.join(GRACE)
        end_process(code)


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
    with connected(args.ray, engines, folder_of_module(args.engine)):
        yield engines.on_the_cluster(make)


def chapter_of(repro: Path) -> str:
    """Return which chapter a failure of a learner's engine leads back to, in one sentence."""
    from ..learn.your_engine import led_back  # it brings Hypothesis, which nobody else waits for

    return led_back(repro)


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


def kept(
    result: Result,
    engine: str,
    options: dict[str, str],
    args: argparse.Namespace,
    make: Callable[[], Engine],
    watch: Watchdog,
) -> str:
    """Return the folder that repeats the smallest failure, beside the report or in a temporary folder that stays; ""
    without a failure, or if there is no time for it."""
    if result.explanation.smallest is None:
        return ""
    beside = args.report or Path(tempfile.mkdtemp(prefix="loracle-"))
    try:
        return str(keep(result, beside / "repro", engine, options, args.seed, make, watch))
    except KeyboardInterrupt:
        if args.report is None:
            shutil.rmtree(beside, ignore_errors=True)
        result.stopped_by = watch.stopped_by or SIGNAL
        result.diagnostics.append(f"{watch.why()}; the smallest failure was not kept")
        return ""


def write(result: Result, engine: str, repro: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the JSON; where a report is wanted, write the page as well."""
    everything = summary(result, engine, repro)
    by_mutant = {key: everything[key] for key in ("power", "seen_from")}  # names of ours, some of which end in "token"
    report = without_secrets(everything) | by_mutant
    if args.report is not None:
        (args.report / "check.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", "utf-8")
        (args.report / PAGE).write_text(page(report, mutants_for(list(result.testbed.paths))), "utf-8")
    return report
