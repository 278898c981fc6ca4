"""loracle merge: a base with adapters in its weights, as a folder of its own."""

import argparse
import dataclasses
import json
from pathlib import Path

from ..arrays import DTYPES
from ..loading.model_folder import base_folder, load_model
from ..tools.merge_folder import Merged, merge_folder, open_base
from ..tools.units import human_bytes
from .terms import read_terms, warn_of_weights

HELP = "write a base with adapters in its weights, as a folder that transformers and Loracle load"
EXAMPLE = """  loracle merge ./llama ./sql-lora --out ./llama-sql
  loracle merge ./llama ./a:0.5 ./b:1.0 --out ./llama-a-b --dtype bfloat16      W + 0.5 of the one + the other
  loracle merge tiny pirate --out ./pirate-base"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of merge."""
    parser.add_argument("base", metavar="BASE", help="a Hugging Face folder or a GGUF file, or tiny")
    parser.add_argument(
        "adapters",
        metavar="ADAPTER[:WEIGHT]",
        nargs="+",
        help="a PEFT or mlx-lm folder or a GGUF file; with a number, or others beside it, a weighted sum",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder that is not there yet")
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        help="of all weights (default: each as the base has it, quantised ones as the numbers that they stand for)",
    )


def run(args: argparse.Namespace) -> int:
    """Return 0, and the folder is there."""
    base = open_base(base_folder(args.base))
    terms = read_terms(args.adapters, base.config, lambda: load_model(args.base, base.dtype))
    folders = {adapter.name: folder for adapter, _, folder in terms}
    merged = merge_folder(base, [(adapter, weight) for adapter, weight, _ in terms], args.out, args.dtype, folders)
    warn_of_weights([(adapter, weight) for adapter, weight, _ in terms])
    if args.json:
        print(json.dumps(dataclasses.asdict(merged)))
    else:
        show(merged)
    return 0


def show(merged: Merged) -> None:
    """Print what was written."""
    parts = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in merged.adapters)
    size = f"{human_bytes(merged.bytes)} in {' and '.join(merged.dtypes)}"
    print(f"{merged.target}: {merged.base} + {parts}, {merged.changed} of {merged.tensors} tensors changed, {size}")
    for note in merged.notes:
        print(f"note: {note}")
