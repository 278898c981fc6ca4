"""loracle guide: TensorRT-LLM's guide to several LoRAs, step by step, with what happens here in the same place."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from .. import tiny
from ..adapter import Adapter
from ..adapter_slots import bind_adapter
from ..errors import RequestError
from ..published import weights
from ..published.guide import BASE_UID, Cast, GuideAnswer, act, modules, published, ranks
from .common import BASE, add_model_arguments, backend, load, prompt_ids

HELP = "TensorRT-LLM's LoRA guide acted again: what each of its steps does, there and here"
EXAMPLE = """  loracle guide
  LORACLE_MODELS=~/models loracle guide      the guide's own weights, from the folders llama-7b-hf, luotuo-lora-7b-0.1
                                             and Japanese-Alpaca-LoRA-7b-v0 in there; without them it says how to fetch
  loracle guide --model ./llama --adapter sql=./sql-lora --adapter chat=./chat-lora --prompt 'SELECT'"""

VOICES = ("pirate", "bard")
TINY_TOKENS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of guide."""
    add_model_arguments(parser)
    parser.set_defaults(model=None, dtype=None)
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="asked of the base and of every adapter")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help=f"default 10, as there; tiny: {TINY_TOKENS}")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="1 (default), as there; 0 is greedy"
    )
    parser.add_argument("--top-p", type=float, default=0.5, metavar="P", help="default 0.5, as there")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default 0; their generator is another one")


def run(args: argparse.Namespace) -> int:
    """Act the guide: convert, build, run."""
    why = choose(args)
    cast, printed = assemble(args)
    answers = act(cast, backend(args.ops))
    if args.json:
        print(json.dumps(as_json(cast, answers, printed, why)))
    else:
        present(Console(), cast, answers, printed, why)
    return 0


def choose(args: argparse.Namespace) -> str:
    """Choose the guide's own weights if they are here and no --model is given; return why not, in one line."""
    if args.model is not None:
        return ""
    guide = published()
    folders = [guide["base"], *guide["adapters"].values()]
    why = weights.missing(folders)
    if args.adapter or why:
        args.model = "tiny"
        return "" if args.adapter else why
    args.model, args.dtype = str(weights.folder(guide["base"])), args.dtype or guide["dtype"]
    args.adapter = [f"{name}={weights.folder(folder)}" for name, folder in guide["adapters"].items()]
    return ""


def assemble(args: argparse.Namespace) -> tuple[Cast, list[str]]:
    """Return the cast, and what the guide printed for each row if these are its weights and prompts."""
    args.dtype = args.dtype or "float32"
    if args.model == "tiny" and not args.adapter:
        args.adapter = [f"{name}={tiny.VOICES[name]}" for name in VOICES]
    if not args.adapter:
        raise RequestError("--model without --adapter: give the adapters, in the order of their uids")
    model, adapters = load(args)
    guide, embedded = published(), args.model == "tiny"
    prompts = args.prompt
    if not prompts:
        published_prompts = list(dict.fromkeys(row["prompt"] for row in guide["rows"]))
        prompts = [text.strip() for text in tiny.DEMO_PROMPTS[:2]] if embedded else published_prompts
    names = [item.partition("=")[0] for item in args.adapter]
    limit = args.max_new_tokens
    if limit is None:
        limit = TINY_TOKENS if embedded else guide["max_new_tokens"]
    cast = Cast(
        model,
        Path(args.model).name,
        [adapters[name] for name in names],
        prompts,
        [prompt_ids(model, text) for text in prompts],
        limit,
        args.temperature,
        args.top_p,
        args.seed,
    )
    theirs = cast.name == guide["base"] and names == list(guide["adapters"]) and not args.prompt
    return cast, [row["output"] for row in guide["rows"]] if theirs else []


def as_json(cast: Cast, answers: list[GuideAnswer], printed: list[str], why: str) -> dict[str, Any]:
    """Return everything that a person sees."""
    adapters = [
        {
            "lora_task_uid": uid,
            "name": adapter.name,
            "ranks": ranks(adapter),
            "scales": scales(cast, adapter),
            "modules": modules(adapter),
        }
        for uid, adapter in enumerate(cast.adapters)
    ]
    rows = [dataclasses.asdict(answer) for answer in answers]
    for row, output in zip(rows, printed, strict=False):
        row["printed_in_the_guide"] = output
    return {
        "model": cast.name,
        "dtype": cast.model.dtype,
        "instead_of_the_guides_weights": why,
        "adapters": adapters,
        "max_lora_rank": cast.max_lora_rank,
        "lora_target_modules": cast.target_modules,
        "commands": cast.commands(),
        "objections": cast.objections(),
        "answers": rows,
    }


def scales(cast: Cast, adapter: Adapter) -> list[float]:
    """Return alpha / r or alpha / sqrt(r) of its modules, each value once."""
    bound = bind_adapter(adapter, cast.model.config)
    return sorted({lora.scale for lora in bound.lora.values()})


# What each step does: there, and here.
STEPS = {
    "convert": (
        "The base becomes a checkpoint of their own. Each adapter is read, and its scale is multiplied into B and "
        "rounded: whoever has only the result can no longer tell alpha.",
        "load_model and load_adapter (loading/) keep what is in the files. tensorrt_llm/prescale.py multiplies the "
        "scale into B when the adapter is loaded, and rounds as they do.",
    ),
    "build": (
        "An engine is compiled, with room for LoRA in these modules, up to this rank. What asks for another module or "
        "a larger rank needs another engine.",
        "Nothing is compiled. AdapterCache (adapter_cache.py) gives each adapter a slot, whatever its modules and "
        "ranks.",
    ),
    "run": (
        "Each text gets one uid, by position: 0 and 1 are the --lora_dir in their order, -1 is the base. Each token "
        "then has a rank and pointers to A and B, of rank 0 and null for the base.",
        "Request.adapter is the adapter itself. make_batch (batch.py) repeats its slot for each token as "
        "Batch.adapter_ids, -1 for the base, and ops.lora_delta (lora.py) adds B (A x) to the tokens that have one.",
    ),
}


def present(console: Console, cast: Cast, answers: list[GuideAnswer], printed: list[str], why: str) -> None:
    """Print the three steps, then the answers, for people."""
    console.print(Text(f"TensorRT-LLM's guide to several LoRAs, on {cast.name} in {cast.model.dtype}", style="bold"))
    step(console, cast, "convert")
    console.print(Padding(adapter_table(cast), (0, 0, 0, 2)))
    step(console, cast, "build")
    for objection in cast.objections():
        console.print(Padding(Text(f"There: {objection}.", style="yellow"), (1, 0, 0, 2)))
    step(console, cast, "run")
    for first in range(0, len(answers), len(cast.adapters) + 1):
        rows = answers[first : first + len(cast.adapters) + 1]
        console.print(Padding(Text(rows[0].prompt, style="dim"), (1, 2, 0, 2)))
        console.print(Padding(answer_table(rows, printed), (0, 0, 0, 2)))
    same = sum(answer.alone for answer in answers)
    console.print(
        f"One prompt, {len(cast.adapters) + 1} answers, one batch. "
        f"Asked alone, {same} of {len(answers)} say the same, token for token."
    )
    if why:
        lacking, _, commands = why.partition("; to fetch: ")
        lines = [f"The guide's own weights: {lacking}. To fetch them:", *commands.split(" && ")]
        console.print(Text("\n" + "\n  ".join(lines), style="dim"), soft_wrap=True)


def step(console: Console, cast: Cast, name: str) -> None:
    """Print a heading, the command, and the two columns."""
    console.print()
    console.print(Rule(Text(f"{[*STEPS].index(name) + 1}  {name}", style="bold"), align="left"))
    console.print(Padding(Text(f"$ {cast.commands()[name]}", style="green"), (0, 0, 1, 2)))
    columns = Table(box=None, expand=True, padding=(0, 2), pad_edge=True)
    columns.add_column("TensorRT-LLM", ratio=1)
    columns.add_column("here", ratio=1)
    columns.add_row(*map(Text, STEPS[name]))
    console.print(columns)


def adapter_table(cast: Cast) -> Table:
    """Return what --lora_dir consists of."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("lora_task_uid", "adapter", "rank", "scale", "modules, by their names"):
        table.add_column(name, justify="right" if name in ("lora_task_uid", "rank", "scale") else "left")
    table.add_row(str(BASE_UID), BASE, "0", "", "none")
    for uid, adapter in enumerate(cast.adapters):
        scale = ", ".join(f"{x:.3g}" for x in scales(cast, adapter))
        table.add_row(
            str(uid), Text(adapter.name), ", ".join(map(str, ranks(adapter))), scale, " ".join(modules(adapter))
        )
    return table


def answer_table(answers: list[GuideAnswer], printed: list[str]) -> Table:
    """Return the rows of one prompt; beside them what the guide printed, if this is its cast."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, expand=True)
    for name in ("Text", "uid", "adapter", "adapter_id"):
        table.add_column(name, justify="left" if name == "adapter" else "right")
    for name in ("Output", "printed there")[: 2 if printed else 1]:
        table.add_column(name, ratio=1)
    for answer in answers:
        texts = [answer.adapter or BASE, str(answer.adapter_id), answer.output, *printed[answer.text : answer.text + 1]]
        table.add_row(str(answer.text), str(answer.lora_task_uid), *map(Text, texts))
    return table
