"""loracle train: LoRA adapters from text, several at once over one base, on this machine."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import LAYER_MODULES
from ..errors import RequestError
from ..loading.model_folder import base_folder, load_model
from ..training import checkpoint, output
from ..training.arguments import TrainingArguments
from ..training.examples import Task
from ..training.loop import train
from ..training.lora_config import LoraConfig
from ..training.run_folder import run_folder
from ..training.session import Session
from ..training.state import TrainingState
from .signals import STOP, on_signals, stop
from .train_hints import outlook, serving
from .train_screen import Screen, progress, show_report
from .train_tasks import data_files, read_tasks

HELP = "train LoRA adapters from JSONL files, several at once over one base"
EXAMPLE = """  loracle train --data tutorials/echo.jsonl --epochs 12 --lr 3e-3 --out ./echo
  loracle train --model ./llama --data sql=sql.jsonl --data chat=chat.jsonl --rank chat=16 --out ./adapters

a line of a file is {"prompt": ..., "completion": ...}, {"messages": [...]} for the model's chat template, or
{"text": ...}, and what the loss is taken on is the completion, what the assistant says, or all of the text"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is learned from, the shape of the adapters, how long and how fast, and where they go."""
    default, shape = TrainingArguments(), LoraConfig()
    add = parser.add_argument
    add("--model", default="tiny", metavar="DIR|tiny", help="the base, a Hugging Face folder (default: tiny)")
    add("--data", action="append", default=[], metavar="[NAME=]FILE.jsonl", help="what to learn; again for more")
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder: one PEFT folder in it for each NAME")
    add("--adapter-name", metavar="NAME", help="the name of the one adapter of --data FILE (default: none, DIR itself)")
    add("--rank", action="append", default=[], metavar="[NAME=]R", help=f"of A and B (default {shape.r})")
    add("--alpha", action="append", default=[], metavar="[NAME=]A", help="the scale is A / R (default twice the rank)")
    add("--rslora", action="store_true", help="the scale is A / sqrt(R)")
    add("--targets", default=",".join(LAYER_MODULES), metavar="NAME,...", help="modules (default: %(default)s)")
    add("--dropout", type=float, default=0.0, metavar="P", help="of the input of each LoRA (default 0)")
    add("--epochs", type=int, default=default.epochs, metavar="E", help="times over the data (default %(default)s)")
    add("--lr", type=float, default=default.learning_rate, help="at its highest; then a cosine (default %(default)s)")
    add(
        "--warmup-ratio",
        type=float,
        default=default.warmup_ratio,
        metavar="W",
        help="of the steps (default %(default)s)",
    )
    add(
        "--batch-tokens",
        type=int,
        default=default.batch_tokens,
        metavar="N",
        help="of each adapter in a batch (default %(default)s)",
    )
    add("--gradient-accumulation-steps", type=int, default=1, metavar="N", help="batches in a step (default 1)")
    add("--gradient-checkpointing", action="store_true", help="less memory: compute activations twice")
    add("--weight-decay", type=float, default=default.weight_decay, help="AdamW's (default %(default)s)")
    add("--max-grad-norm", type=float, default=default.max_grad_norm, help="clip there; 0: never (default 1)")
    add("--seed", type=int, default=default.seed, help="of A, order, dropout, what is held out (default %(default)s)")
    add("--held-out", type=float, default=0.1, metavar="SHARE", help="of the rows, to measure on (default 0.1)")
    add("--max-length", type=int, metavar="N", help="tokens of a row at most (default: the model's positions)")
    add("--cut", action="store_true", help="cut longer rows there instead of stopping")
    add("--dtype", default="float32", choices=("float32", "float64"), help="what is computed in (default float32)")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="cuda needs CuPy (default cpu)")
    add("--resume", action="store_true", help="go on with the interrupted run of the same arguments")


def run(args: argparse.Namespace) -> int:
    """Return 0 when everything is trained and written; an interrupt leaves a checkpoint, and says how to go on."""
    with on_signals(stop, *STOP), run_folder(new_name(args.out), data_files(args.data, args.adapter_name)) as folder:
        check_unfinished(folder, args.resume)
        return run_in(folder, args)


def run_in(folder: Path, args: argparse.Namespace) -> int:
    """Train, with checkpoints in the folder; write the output, and remove the folder."""
    console = Screen(stderr=args.json, width=None if sys.stdout.isatty() else 200)
    arguments = training_arguments(args)
    model = load_model(args.model, args.dtype, args.device)
    tasks, notes = read_tasks(args, model)
    session = Session(folder, checkpoint.describe(model, tasks, arguments), str(base_folder(args.model)))
    if args.resume:
        session.resume(args.device)
    lines, of_warmup = outlook(tasks, arguments)
    notes += of_warmup
    for line in (*lines, *(f"note: {note}" for note in notes)):
        console.print_line(line)
    report: dict[str, Any] = {}

    def train_and_write(on_step: Callable[[TrainingState], None], state: TrainingState | None) -> TrainingState:
        state = train(model, tasks, arguments, on_step=on_step, state=state)
        report.update(report_of(args, tasks, state, session.seconds, notes))
        output.write_output(args.out, state, {**report, "arguments": session.description}, session.base)
        return state

    with progress(console, tasks) as show, np.errstate(over="ignore", invalid="ignore"):  # a NaN is found in the loss
        state = session.run(train_and_write, show)
    shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        show_report(console, report, state)
        line = serving(args.model, {row["name"]: row["folder"] for row in report["adapters"]})
        console.print_line(line)
    return 0


def new_name(out: Path) -> Path:
    """Return the name of the output. RequestError for one that only says where another folder is."""
    if out.name in ("", ".."):
        raise RequestError(f"--out {out}: give a folder by its own name; it is made when everything in it is there")
    return out


def check_unfinished(folder: Path, resume: bool) -> None:
    """RequestError for a checkpoint that nobody asked to go on with."""
    if not resume and (folder / checkpoint.STATE_FILE).exists():
        done = ", ".join(f"{name} {step} of {steps}" for name, (step, steps) in checkpoint.steps_done(folder).items())
        raise RequestError(f"{folder} holds an unfinished run (steps: {done}): add --resume to go on, or remove it")


def training_arguments(args: argparse.Namespace) -> TrainingArguments:
    """Return the arguments that all adapters have in common."""
    return TrainingArguments(
        epochs=args.epochs,
        learning_rate=args.lr,
        batch_tokens=args.batch_tokens,
        seed=args.seed,
        warmup_ratio=args.warmup_ratio,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm or None,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        gradient_checkpointing=args.gradient_checkpointing,
    )


# ---- when it is done ------------------------------------------------------------------------------------------------


def report_of(
    args: argparse.Namespace, tasks: Sequence[Task], state: TrainingState, seconds: float, notes: list[str]
) -> dict[str, Any]:
    """Return what --json prints."""
    adapters = []
    for task in tasks:
        result = state.tasks[task.name]
        adapters.append(
            {
                "name": task.name,
                "folder": str(output.adapter_folder(args.out, task.name)),
                "parameters": int(sum(x.size for x in result.parameters.values())),
                "examples": len(task.examples),
                "held_out_examples": len(task.held_out),
                "steps": result.steps,
                "loss": result.losses[-1],
                "held_out_loss": [loss for _, loss in (*result.held_out[:1], *result.held_out[-1:])],
            }
        )
    return {"seconds": round(seconds, 1), "adapters": adapters, "notes": notes}
