"""loracle vectors: make a set of test vectors, or verify something over one."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..backends import BACKENDS
from ..errors import LoracleError
from ..oracle.vectors.vector import KINDS, VECTOR_DTYPES, Vector

if TYPE_CHECKING:
    from ..oracle.vectors.systems import SystemUnderTest
    from ..oracle.vectors.verify import Verdict

HELP = "make a set of test vectors, or verify a backend or your own function over one"
EXAMPLE = """  loracle vectors make --out vectors --seed 0
  loracle vectors verify vectors --ops cuda                       the kernels
  loracle vectors verify vectors --function my_kernels:vector     f(kind, inputs, about) -> outputs, or None
  loracle vectors verify vectors --engine peft                    whole models through an engine
  loracle vectors verify vectors/lora/mixed_ranks --dtype bfloat16"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of vectors."""
    parser.add_argument("what", choices=("make", "verify"), help="write a new set, or verify something over one")
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="DIR", help="verify: a set, or the folder of one vector"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="make: the new folder")
    parser.add_argument("--seed", type=int, help="make: the same seed gives the same bytes (default 0)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these; again for more (default: all)")
    tested = parser.add_mutually_exclusive_group()
    tested.add_argument("--ops", choices=sorted(BACKENDS), help="verify: a backend of ours (default numpy)")
    tested.add_argument("--function", metavar="MODULE:FUNCTION", help="verify: your own, imported from here")
    tested.add_argument("--engine", metavar="NAME", help="verify: a line of `loracle engines`, for whole models")
    parser.add_argument("--dtype", choices=VECTOR_DTYPES, help="verify: what it computes in (default float32)")


def run(args: argparse.Namespace) -> int:
    """Return 0; of verify 1 if anything that was computed is wrong."""
    _check(args)
    return _make(args) if args.what == "make" else _verify(args)


def _check(args: argparse.Namespace) -> None:
    """Refuse an option of the other subcommand: nothing is ignored."""
    needed, others = {
        "make": ("out", ("folder", "ops", "function", "engine", "dtype")),
        "verify": ("folder", ("out", "seed")),
    }[args.what]
    if getattr(args, needed) is None:
        raise LoracleError(f"{args.what} needs {'--out DIR' if needed == 'out' else 'DIR, a set of vectors'}")
    for other in others:
        if getattr(args, other) is not None:
            raise LoracleError(f"{args.what} takes no {'DIR; give --out DIR' if other == 'folder' else '--' + other}")
    if args.seed is not None and args.seed < 0:
        raise LoracleError(f"--seed {args.seed} must be 0 or more")


def _make(args: argparse.Namespace) -> int:
    from ..oracle.vectors.make import make_set

    seed = args.seed or 0
    vectors = make_set(args.out, seed, args.kind or KINDS)
    count = {kind: sum(v.kind == kind for v in vectors) for kind in KINDS}
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    if args.json:
        print(json.dumps({"out": str(args.out), "seed": seed, "vectors": count, "bytes": size}))
    else:
        kinds = ", ".join(f"{n} {kind}" for kind, n in count.items() if n)
        print(f"{args.out}: {len(vectors)} vectors ({kinds}), {size:,} bytes")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from ..engines import registry
    from ..oracle.vectors.function import of_function
    from ..oracle.vectors.read import read_set
    from ..oracle.vectors.systems import EngineUnderTest, OpsUnderTest
    from ..oracle.vectors.verify import verify

    vectors = [v for v in read_set(args.folder) if v.kind in (args.kind or KINDS)]
    if not vectors:
        raise LoracleError(f"{args.folder}: no vector of kind {', '.join(args.kind)}")
    name, dtype = args.function or args.engine or args.ops or "numpy", args.dtype or "float32"
    if args.function:
        tested: SystemUnderTest = of_function(name)
    elif args.engine:
        registry.make(name, {}).close()  # what is not installed is said now
        tested = EngineUnderTest(lambda: registry.make(name, {}))
    else:
        ops = BACKENDS[name]
        tested = OpsUnderTest(lambda: ops)
    verdicts = list(_followed(verify(vectors, tested, dtype), len(vectors), args.json))
    count = {word: sum(verdict.verdict == word for verdict in verdicts) for word in ("pass", "fail", "skipped")}
    if args.json:
        about = {"set": str(args.folder), "tested": name, "dtype": dtype, **count}
        print(json.dumps({**about, "vectors": [_plain(verdict) for verdict in verdicts]}))
    else:
        _show(Console(), verdicts, name, dtype, count)
    if count["skipped"] == len(verdicts):
        raise LoracleError(f"{name} computed none of the {len(verdicts)} vectors: nothing was verified")
    return 1 if count["fail"] else 0


def _followed(verdicts: "Iterable[Verdict]", total: int, quiet: bool) -> "Iterable[Verdict]":
    """Pass the verdicts on, with a bar on a terminal: the kernels take their time on a CPU."""
    from rich.progress import track

    console = Console(stderr=True)
    return track(
        verdicts, "verifying", total, console=console, transient=True, disable=quiet or not sys.stderr.isatty()
    )


def _plain(verdict: "Verdict") -> dict[str, Any]:
    """Return one vector for machines; what is infinitely far off is null, which JSON has."""
    v: Vector = verdict.vector
    numbers = {"noise": verdict.noise, "share": verdict.share}
    return {
        "vector": v.id,
        "result": v.result,
        "verdict": verdict.verdict,
        **{key: x if x < float("inf") else None for key, x in numbers.items()},
        "why": verdict.why,
        "bugs": list(v.bugs),
    }


MANY = 3  # vectors that fail for the same reason, letter for letter, are counted and not listed
STYLES = {"pass": "green", "fail": "bold red", "skipped": "yellow"}


def _failures_by_reason(verdicts: "list[Verdict]") -> "dict[str, list[Verdict]]":
    """Return the vectors that failed under why they did: a wrong name of an output is one mistake, not one a vector."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.verdict == "fail":
            groups.setdefault(verdict.why, []).append(verdict)
    return groups


def _show(console: Console, verdicts: "list[Verdict]", name: str, dtype: str, count: dict[str, int]) -> None:
    """Print a row for each vector, then what is wrong with those that failed, then the sum."""
    table = Table("vector", "result", "noise", "of limit", "verdict", box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    for verdict in verdicts:
        answered = (
            bool(verdict.vector.outputs) and not verdict.why.startswith("refused") and verdict.verdict != "skipped"
        )
        numbers = (
            (f"{verdict.noise:.3g}", f"{verdict.share:.3g}")
            if answered
            else ("", "refused" if verdict.verdict == "pass" else "")
        )
        table.add_row(
            verdict.vector.id, verdict.vector.result, *numbers, Text(verdict.verdict, style=STYLES[verdict.verdict])
        )
    console.print(table)
    for why, same in _failures_by_reason(verdicts).items():
        if len(same) > MANY:
            console.print(Text(f"{same[0].vector.id} and {len(same) - 1} more: ", style="bold red") + Text(why))
            continue
        for verdict in same:
            console.print(Text(f"{verdict.vector.id}: ", style="bold red") + Text(why))
            console.print(Text(f"  {verdict.vector.comment}", style="dim"))
    total = ", ".join(f"{n} {word}" for word, n in count.items() if n)
    console.print(Text(f"{name} in {dtype}: {total}", style=STYLES["fail" if count["fail"] else "pass"]))
