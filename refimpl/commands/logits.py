"""loracle logits: the numbers themselves, as a safetensors file, for a user's own comparison."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import LoracleError, RequestError
from ..formats.files import write_safetensors
from ..loading.conversion import all_finite
from ..model import logits
from ..tracing import Trace, trace
from .common import Prompt, add_model_arguments, add_prompt_arguments, load, read_requests
from .ranks import add_rank_arguments, on_ranks

HELP = "write the logits of every prompt token to a safetensors file"
EXAMPLE = """  loracle logits --prompt 'pirate:Ahoy' --prompt 'base:Ahoy' --dtype float64 --output ahoy.safetensors
  (tensors: N.prompt_ids [tokens], N.logits [tokens, vocab] of the N-th prompt; with --trace: trace.NAME)"""

SUFFIX = ".safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of logits."""
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    add_rank_arguments(parser)
    add_file_arguments(parser, required=True)


def add_file_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    """Add --output and --trace."""
    parser.add_argument(
        "--output",
        type=Path,
        required=required,
        metavar="FILE",
        help="the safetensors file to write, NAME.safetensors; one that is there is replaced",
    )
    parser.add_argument(
        "--trace",
        action="append",
        default=[],
        metavar="PATTERN",
        help="also these intermediates of the whole batch, e.g. 'layers.*.q_proj.lora'; again for more",
    )


def run(args: argparse.Namespace) -> int:
    """Run one batch and write one file."""
    check_output(args.output)
    model, adapters = load(args)
    prompts = read_requests(args, model, adapters)
    requests = [prompt.request for prompt in prompts]
    rows, traced = with_trace(args.trace, lambda: on_ranks(args, logits, model, requests))
    warn_of_nan(prompts, rows)
    shapes = write_rows(args, prompts, "logits", rows, traced)
    if args.json:
        print(json.dumps({"output": str(args.output), "tensors": shapes}))
    else:
        count = sum(len(x) for x in rows)
        print(f"{args.output}: {len(prompts)} prompts, {count} rows of logits, {len(traced)} traced arrays")
    return 0


def check_output(file: Path) -> None:
    """Raise RequestError for a file that would not be called what it is."""
    if file.suffix != SUFFIX:
        raise RequestError(f"--output {file}: what is written is a safetensors file; let its name end in {SUFFIX}")


def with_trace(patterns: Sequence[str], compute: Callable[[], Any]) -> tuple[Any, Trace]:
    """Return what the call returns, and the intermediates that the patterns name: each must name one."""
    traced = Trace(())
    with np.errstate(over="ignore", invalid="ignore"):  # warn_of_nan says what comes of it
        if patterns:
            with trace(*patterns) as traced:
                result = compute()
        else:
            result = compute()
    return result, traced


def warn_of_nan(prompts: Sequence[Prompt], rows: Sequence[np.ndarray]) -> None:
    """Say which prompts have numbers that are none."""
    for i, (prompt, x) in enumerate(zip(prompts, rows, strict=True)):
        if not all_finite(x):
            what = f"prompt {i} ({prompt.adapter}): what was computed holds NaN or inf"
            print(f"loracle: warning: {what}", file=sys.stderr)


def write_rows(
    args: argparse.Namespace, prompts: Sequence[Prompt], kind: str, rows: Sequence[np.ndarray], traced: Trace
) -> dict[str, list[int]]:
    """Write N.prompt_ids and N.KIND of every prompt, and the trace, to --output; return the shapes by name."""
    tensors = {f"trace.{name}": traced[name] for name in traced}
    for i, (prompt, x) in enumerate(zip(prompts, rows, strict=True)):
        tensors[f"{i}.prompt_ids"] = np.asarray(prompt.request.prompt_ids, np.int32)
        tensors[f"{i}.{kind}"] = x
    about = {
        "loracle": __version__,
        "model": str(args.model),
        "dtype": args.dtype,
        "ops": args.ops,
        "adapters": json.dumps([prompt.adapter for prompt in prompts]),
    }
    write(args.output, tensors, about)
    return {name: list(x.shape) for name, x in tensors.items()}


def write(file: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write the whole file or none of it."""
    part = file.with_name(file.name + ".part")
    try:
        write_safetensors(part, tensors, metadata)
        os.replace(part, file)
    except Exception as error:
        part.unlink(missing_ok=True)
        raise LoracleError(f"{file}: cannot be written ({error})") from None
