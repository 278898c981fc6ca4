"""loracle scores: what classification heads say of each prompt, those of different adapters in one batch."""

import argparse
import json
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..classification import scores
from ..config import SCORE
from ..errors import RequestError
from ..loading.config_file import label_names
from ..loading.model_folder import base_folder
from .common import Prompt, add_model_arguments, add_prompt_arguments, backend, load, read_requests
from .logits import add_file_arguments, check_output, warn_of_nan, with_trace, write_rows

HELP = "score prompts by classification heads (score), the base's or its adapters' own, in one batch"
EXAMPLE = """  loracle scores --model ./llama --adapter spam=./spam-lora --adapter mood=./mood-lora \\
    --prompt 'spam:You have won' --prompt 'mood:You have won' --dtype float64
  (scores are logits, before a softmax; with --output: N.prompt_ids [tokens], N.scores [labels] of the N-th prompt)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of scores."""
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    add_file_arguments(parser, required=False)


def run(args: argparse.Namespace) -> int:
    """Run one batch; print the scores, and write them to a file where one is named."""
    if args.output:
        check_output(args.output)
    elif args.trace:
        raise RequestError("--trace: give --output FILE, where the arrays go")
    model, adapters = load(args)
    prompts = read_requests(args, model, adapters, SCORE)
    requests = [prompt.request for prompt in prompts]
    rows, traced = with_trace(args.trace, lambda: scores(model, requests, ops=backend(args.ops)))
    warn_of_nan(prompts, rows)
    names = label_names(base_folder(args.model)) if model.config.labels else ()
    if args.output:
        write_rows(args, prompts, "scores", rows, traced)
    if args.json:
        print(json.dumps({"scores": [as_json(prompt, row, names) for prompt, row in zip(prompts, rows, strict=True)]}))
        return 0
    console = Console()
    console.print(scores_table(prompts, rows, names))
    if args.output:
        console.print(Text(f"{args.output}: {len(prompts)} prompts, {len(traced)} traced arrays"))
    return 0


def as_json(prompt: Prompt, row: np.ndarray, names: Sequence[str]) -> dict[str, object]:
    """Return one prompt's scores for machines."""
    return {
        "adapter": prompt.adapter,
        "prompt": prompt.text,
        "labels": labels_of_head(prompt, row, names),
        "scores": row.astype(np.float64).tolist(),
    }


def labels_of_head(prompt: Prompt, row: np.ndarray, names: Sequence[str]) -> list[str]:
    """Return what the scores are of: the base's names for its own head, and numbers for an adapter's, whose folder
    does not hold them."""
    of_adapter = any(SCORE in adapter.replaced for adapter, _ in prompt.request.adapters)
    return [str(i) for i in range(len(row))] if of_adapter or len(names) != len(row) else list(names)


def scores_table(prompts: Sequence[Prompt], rows: Sequence[np.ndarray], names: Sequence[str]) -> Table:
    """Return one row for each prompt: its scores, the highest one in bold."""
    table = Table("adapter", "prompt", "scores", box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    for prompt, row in zip(prompts, rows, strict=True):
        labels = labels_of_head(prompt, row, names)
        cells = [Text(f"{label} {value:.4f}") for label, value in zip(labels, row.astype(np.float64), strict=True)]
        cells[int(np.argmax(row))].stylize("bold")
        text = " ".join((prompt.text or " ".join(map(str, prompt.request.prompt_ids))).split())
        table.add_row(
            Text(prompt.adapter), Text(text if len(text) <= 40 else text[:37] + "..."), Text("  ").join(cells)
        )
    return table
