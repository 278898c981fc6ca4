"""loracle record: keep what an engine answers, so that it can be judged where the engine is not."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..engines import registry
from ..engines import tensorrt_llm as trtllm
from ..engines.interface import EngineError
from ..errors import LoracleError, RequestError
from ..oracle import check as checking
from ..oracle.cases import archive
from ..oracle.recordings.tensorrt_llm_cases import write_cases
from ..oracle.reports.result import CampaignSettings

HELP = "keep what an engine answers to cases; for TensorRT-LLM: what to run on the machine with the GPU"
EXAMPLE = """  loracle record --engine tensorrt_llm --out recorded     the cases, and the command for the GPU machine
  loracle record --engine peft --cases 20 --out recorded  the answers, as `check --resume` keeps them"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose answers, to what, and where they go."""
    add = parser.add_argument
    add("--engine", required=True, metavar="NAME", help="a name of `loracle engines`")
    add("--out", required=True, type=Path, metavar="DIR", help="a folder that is not there yet")
    add("--model", default="tiny", metavar="DIR|tiny|random", help="the base (default: tiny)")
    add("--dtype", help="what the engine computes in (default float16 for tensorrt_llm, else float32)")
    add("--cases", type=int, metavar="N", help="batches (default 50); tensorrt_llm has a fixed set")
    add("--seed", type=int, default=0, metavar="S", help="the same seed asks the same questions (default 0)")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the engine; again for more")


def run(args: argparse.Namespace) -> int:
    """0 when everything was recorded, or the cases for a GPU machine are there; 1 when something is missing."""
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise RequestError(f"--out {args.out}: is there already; give the name of a new folder")
    if args.cases is not None and args.cases < 1:
        raise RequestError(f"--cases {args.cases} must be 1 or more")
    try:
        return record_tensorrt_llm(args) if args.engine == "tensorrt_llm" else record(args)
    except LoracleError:
        if not (args.out / "answers").is_dir():  # nothing was answered: nothing is left behind
            shutil.rmtree(args.out, ignore_errors=True)
        raise


def record_tensorrt_llm(args: argparse.Namespace) -> int:
    """Write the cases; and run the recorder if TensorRT-LLM is here."""
    if args.cases is not None or args.option:
        raise RequestError("--cases and --option are not for tensorrt_llm: its recorder asks a fixed set")
    cases, out = args.out / "cases", args.out / "recording"
    write_cases(cases, args.model, args.dtype or "float16", args.seed)
    base_options = [] if args.model in ("tiny", "random") else ["--model", args.model]
    missing = trtllm.entry().missing
    command = ["python", "cases/record_tensorrt_llm.py", "cases", "recording", *base_options]
    report: dict[str, Any] = {"cases": str(cases), "recording": None, "command": " ".join(command), "missing": missing}
    code = 0
    if not missing:
        recorder = [sys.executable, str(cases / "record_tensorrt_llm.py"), str(cases), str(out), *base_options]
        done = subprocess.run(recorder, stdout=sys.stderr if args.json else None)
        report, code = {**report, "recording": str(out)}, min(done.returncode, 1)
    if args.json:
        print(json.dumps(report))
    elif missing:
        print(f"{cases}: what TensorRT-LLM is to be asked. It is not here; on a machine that has it, copy that folder")
        print(f"and run, beside it:\n\n    {report['command']}\n")
        print("then bring the folder `recording` back, into tests/recordings/ or $LORACLE_RECORDINGS, and run")
        print("pytest tests/engines/test_tensorrt_llm.py")
    return code


def record(args: argparse.Namespace) -> int:
    """The batches that `loracle check` would draw, and the engine's answers to them."""
    from .check import pairs

    options = pairs("--option", "KEY=VALUE", args.option)
    probe = registry.make(args.engine, options)
    capabilities, dtype, count = probe.capabilities, args.dtype or "float32", args.cases or 50
    if dtype not in capabilities.dtypes:
        raise EngineError(f"{args.engine} does not compute in {dtype}; it does in {', '.join(capabilities.dtypes)}")
    about = {"engine": args.engine, "model": args.model, "dtype": dtype, "seed": args.seed}
    archive.describe(args.out, about, capabilities)
    # The questions are those of `loracle check`, so that `--engine recorded` finds an answer to each of them.
    settings = CampaignSettings(count, 0, args.seed, precision=dtype, below=False)
    result = checking.check(lambda: registry.make(args.engine, options), args.model, {}, settings, args.out)
    about |= {"cases": count, "versions": result.versions}
    if args.json:
        print(json.dumps({**about, "answers": str(args.out)}))
    else:
        print(f"{args.out}: what {args.engine} answered to {count} batches")
    return 0
