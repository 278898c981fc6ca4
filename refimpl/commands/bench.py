"""loracle bench: the kernels against the fewest bytes they could move, serving in one batch against one by one, and how
many adapters can be served."""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import DeviceError, RequestError
from ..tools.units import human_seconds
from . import bench_adapters

HELP = "measure the kernels, serving many adapters in one batch, or thousands of them under arriving requests"
EXAMPLE = """  loracle bench kernels                            every point verified, then timed, or its bytes counted
  loracle bench kernels --quick --json             a few points, for machines
  loracle bench serving --output results           1 to 64 adapters: table, JSON, PNG and SVG
  loracle bench adapters --adapters 5,50 --clock cpu --modules q_proj,v_proj
  loracle bench adapters --arrivals trace.jsonl --memory 64MB --pool unified"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of bench."""
    parser.add_argument("what", choices=("kernels", "serving", "adapters"), help="which benchmark")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few points only")
    size.add_argument("--full", action="store_true", help="kernels: the whole grid of 468 points instead of about 60")
    parser.add_argument(
        "--ops", choices=("numpy", "cuda"), help="serving, adapters: which backend (default cuda on a GPU, else numpy)"
    )
    parser.add_argument(
        "--repeats", type=int, metavar="N", help="how often each is timed (default 25; serving 7, adapters 5)"
    )
    parser.add_argument(
        "--seconds", type=float, default=math.inf, metavar="S", help="begin no further point after these"
    )
    parser.add_argument("--no-others", action="store_true", help="kernels: without torch and Triton for comparison")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write JSON, PNG and SVG there")
    bench_adapters.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Return 0 if everything was right; 1 if a kernel is wrong, which is said before anything is timed."""
    from ..bench.verify import WrongResult
    from ..errors import KernelError

    check(args)
    report: dict[str, Any] = {}
    try:
        say = Progress(args.what)
        for report in reports(args):
            write(args.output, report)
            say(report)
    except (WrongResult, KernelError) as error:
        print(f"loracle bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(report))
    else:
        show(report)
    if args.output:
        picture(report, args.output)
    return 0


class Progress:
    """Says on stderr how far a benchmark is, at most once in EVERY seconds."""

    EVERY = 5.0

    def __init__(self, what: str) -> None:
        self.what, self.begun, self.reports = what, time.monotonic(), 0
        self.last = self.begun

    def __call__(self, report: dict[str, Any]) -> None:
        """Say how many points there are, of adapters how many rounds, unless that was said just now."""
        self.reports, now = self.reports + 1, time.monotonic()
        if now - self.last >= self.EVERY:
            part = f"{len(report['points'])} points"
            if self.what == "adapters":
                repeats = report["setup"]["repeats"]
                part = "latencies" if self.reports > repeats else f"round {self.reports} of {repeats}"
            text = f"{part} after {human_seconds(now - self.begun)}"
            print(f"loracle bench {self.what}: {text}", file=sys.stderr, flush=True)
            self.last = now


def check(args: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    if args.what != "kernels" and (args.full or args.no_others):
        raise RequestError("--full and --no-others are for bench kernels")
    bench_adapters.check(args)
    if args.what == "kernels" and args.ops:
        raise RequestError("--ops is for bench serving: bench kernels runs the kernels")
    if args.repeats is not None and args.repeats < 1:
        raise RequestError(f"--repeats {args.repeats}: at least 1")
    if not args.seconds > 0:
        raise RequestError(f"--seconds {args.seconds:g}: more than 0")
    if args.output is not None:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"--output {args.output}: {error.strerror}") from None


def reports(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the report as it grows."""
    from ..cuda import runner

    on_gpu = runner.device() == "gpu"
    if args.what == "serving":
        from ..bench import serving

        ops = args.ops or ("cuda" if on_gpu else "numpy")
        yield from serving.bench(ops, args.quick, args.repeats or 7, seconds=args.seconds)
        return
    if args.what == "adapters":
        from ..bench import adapters

        yield from adapters.bench(bench_adapters.setup_of(args, on_gpu))
        return
    from ..bench import kernels, workloads
    from ..bench.layer import layer_report

    points = workloads.grid(args.full) if on_gpu else workloads.small_grid(args.quick)
    if on_gpu and args.quick:
        points = points[::8]
    if args.full and not on_gpu:
        raise RequestError("--full needs a GPU: on a CPU the kernels run thread by thread")
    report: dict[str, Any] = {}
    for report in kernels.bench(points, args.repeats or 25, not args.no_others, args.seconds):
        yield report
    report["layer"] = layer_report()
    yield report


def write(folder: Path | None, report: dict[str, Any]) -> None:
    """Write the report so far, whole or not at all."""
    if folder:
        partial = folder / f".{report['benchmark']}.json"
        partial.write_text(json.dumps(report, indent=1) + "\n")
        partial.replace(folder / f"{report['benchmark']}.json")


def show(report: dict[str, Any]) -> None:
    """Print a table and what it comes to."""
    from ..bench import adapters_table, tables

    console = Console() if sys.stdout.isatty() else Console(width=200)
    if report["benchmark"] == "kernels":
        table, lines = tables.kernels_table(report), tables.kernels_lines(report)
    elif report["benchmark"] == "adapters":
        table, lines = adapters_table.table(report), adapters_table.lines(report)
    else:
        table, lines = tables.serving_table(report), tables.serving_lines(report)
    console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def picture(report: dict[str, Any], folder: Path) -> None:
    """Draw PNG and SVG; where they cannot be drawn, a line that says why."""
    from ..bench.plots import draw

    if not report["points"]:
        return
    try:
        draw(report, folder)
    except DeviceError as error:
        print(f"loracle bench: {error}", file=sys.stderr)
