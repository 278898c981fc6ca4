"""What `loracle train` says before its first step and after its last: what will be done, and what to do next."""

import shlex
from collections.abc import Mapping, Sequence

from .. import tiny
from ..training.arguments import TrainingArguments
from ..training.examples import Task, schedule_of
from ..training.optimizer import warmup_steps


def outlook(tasks: Sequence[Task], arguments: TrainingArguments) -> tuple[list[str], list[str]]:
    """Return a line on what each task has to do, and a note on each whose learning rate never comes to its height."""
    lines, notes = [], []
    for task in tasks:
        steps = len(schedule_of(task.examples, arguments).steps)
        rows = f"{len(task.examples)} + {len(task.held_out)} rows"
        lines.append(f"{task.name}: {rows}, {steps} step{'s' if steps > 1 else ''}")
        if warmup_steps(steps, arguments) == steps:
            what = f"all {steps} steps are warm-up" if steps > 1 else "its one step is warm-up: nothing will be learned"
            notes.append(f"{task.name}: {what}; give more --epochs, fewer --batch-tokens, or --warmup-ratio 0")
    return lines, notes


def serving(model: str, folders: Mapping[str, str]) -> str:
    """Return the line with the command that serves adapters, given by name, of this base."""
    command = ["loracle", "generate"] + (["--model", model] if model != "tiny" else [])
    for name, folder in folders.items():
        alias = f"my-{name}" if model == "tiny" and name in tiny.VOICES else name  # its voices have their names already
        command += ["--adapter", f"{alias}={folder}", "--prompt", f"{alias}:TEXT"]
    return f"to serve it: {shlex.join(command)}"
