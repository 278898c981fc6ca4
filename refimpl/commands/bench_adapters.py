"""The options of `loracle bench adapters`: how many adapters, of which ranks, for whom, and in how much memory."""

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..loading.suggestion import did_you_mean

if TYPE_CHECKING:
    from ..bench.adapter_testbed import Setup

OPTIONS = (
    *("adapters", "ranks", "modules", "base", "arrivals", "cv", "popularity", "requests", "rate"),
    *("memory", "pool", "clock", "save_arrivals"),
)
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of bench adapters. None of them has a default here, so that `check` sees which were given."""
    group = parser.add_argument_group("bench adapters")
    add = group.add_argument
    add("--adapters", metavar="N,N", help="how many, side by side (default 5,50,500,2000)")
    add("--ranks", metavar="R,R", help="their ranks, in turn (default 8,16,32,64)")
    add("--modules", metavar="NAME,NAME", help="the modules that have LoRA (default: the seven linear layers)")
    add("--base", metavar="embedded|110m|DIR", help="the base: a random Llama of 110M's shape, or a folder")
    add(
        "--arrivals",
        metavar="poisson|gamma|FILE",
        help="gaps between requests, or a trace, one request a line (JSONL): arrival, adapter, prompt_tokens or "
        "prompt_ids, max_new_tokens",
    )
    add("--cv", type=float, metavar="X", help="gamma: standard deviation over mean of the gaps (default 4: bursts)")
    add("--popularity", choices=("zipf", "uniform"), help="who asks for which adapter (default zipf)")
    add("--requests", type=int, metavar="N", help="in a trace that is drawn (default 128)")
    add("--rate", type=float, metavar="X", help="requests a second for the latencies (default 0.7 of the throughput)")
    add("--memory", metavar="BYTES", help="for keys, values and adapters; 512MB, 2GiB (default: as much as they need)")
    add("--pool", choices=("separate", "unified"), help="adapter slots beside the KV cache (default), or one pool")
    add("--clock", choices=("wall", "cpu"), help="cpu: CPU time of this process, where others use the machine too")
    add("--save-arrivals", type=Path, metavar="FILE", help="write the trace of the largest number of adapters as JSONL")


def check(args: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    given = [name for name in OPTIONS if getattr(args, name) is not None]
    if args.what != "adapters":
        if given:
            raise RequestError(f"--{given[0].replace('_', '-')} is for bench adapters")
        return
    if args.arrivals in ("poisson", "gamma", None):
        if args.cv is not None and args.arrivals != "gamma":
            raise RequestError("--cv is for --arrivals gamma: that of poisson is 1")
        return
    for name in ("adapters", "cv", "popularity", "requests", "rate", "save_arrivals"):
        if name in given:
            raise RequestError(
                f"--{name.replace('_', '-')} says how to draw a trace, and --arrivals names a file of one"
            )


def setup_of(args: argparse.Namespace, on_gpu: bool) -> "Setup":
    """Return what is to be measured. LoracleError for an option, or a line of a trace, that cannot be used."""
    from ..bench.adapter_testbed import COUNTS, RANKS, Setup, trace_for
    from ..bench.arrivals import Workload, read_arrivals, write_arrivals
    from ..config import LAYER_MODULES

    if args.arrivals not in ("poisson", "gamma", None) and not Path(args.arrivals).is_file():
        meant = did_you_mean(str(args.arrivals), ("poisson", "gamma"))
        raise RequestError(f"--arrivals {args.arrivals}: neither poisson, nor gamma, nor a file{meant}")
    drawn_process = args.arrivals in ("poisson", "gamma", None)
    process = args.arrivals if args.arrivals and drawn_process else "poisson"
    cv = 1.0 if process == "poisson" else 4.0 if args.cv is None else args.cv
    requests = 128 if args.requests is None else args.requests
    if args.rate is not None and not (args.rate > 0 and math.isfinite(args.rate)):
        raise RequestError(f"--rate {args.rate:g}: more than 0 requests a second")
    ops = args.ops or ("cuda" if on_gpu else "numpy")
    if args.clock == "cpu" and ops == "cuda" and on_gpu:
        raise RequestError("--clock cpu does not see a GPU's time")
    setup = Setup(
        base=args.base or "embedded",
        counts=whole_numbers("--adapters", args.adapters) if args.adapters else COUNTS,
        ranks=whole_numbers("--ranks", args.ranks) if args.ranks else RANKS,
        modules=args.modules.split(",") if args.modules else LAYER_MODULES,
        workload=Workload(requests=requests, process=process, cv=cv, popularity=args.popularity or "zipf"),
        rate=args.rate,
        trace=None if drawn_process else read_arrivals(Path(args.arrivals)),
        memory=None if args.memory is None else bytes_of("--memory", args.memory),
        pool=args.pool or "separate",
        ops=ops,
        device="cuda" if ops == "cuda" and on_gpu else "cpu",
        repeats=2 if args.quick and not args.repeats else args.repeats or 5,
        seconds=args.seconds,
        clock=args.clock or "wall",
    )
    if args.save_arrivals:
        write_arrivals(args.save_arrivals, trace_for(setup, max(setup.counts), setup.rate or setup.workload.rate))
    return setup


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read 5,50,500. RequestError for anything that is no list of numbers from 1, each of them once."""
    numbers = text.split(",")
    if not all(re.fullmatch(r"[1-9]\d{0,8}", number) for number in numbers):
        raise RequestError(f"{option} {text}: expected whole numbers from 1, with commas between them")
    if len(set(numbers)) < len(numbers):
        raise RequestError(f"{option} {text}: a number is there twice")
    return tuple(int(number) for number in numbers)


def bytes_of(option: str, text: str) -> int:
    """Read 1500000, 512MB or 2GiB. RequestError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text)
    if match is None or match[2].upper() not in UNITS or not float(match[1]) > 0:
        raise RequestError(f"{option} {text}: expected bytes, as 1500000, 512MB or 2GiB")
    return round(float(match[1]) * UNITS[match[2].upper()])
