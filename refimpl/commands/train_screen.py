"""What `loracle train` shows: bars or lines while it runs, a curve and a table when it is done."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..training import output
from ..training.examples import Task
from ..training.state import TaskState, TrainingState


class Screen(Console):
    """A console whose reader may leave: in `loracle train ... | head -1` the run goes on, without a word."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    def print_line(self, text: str) -> None:
        """Print a line as it is: names are other people's, and no markup."""
        self.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Screen, tasks: Sequence[Task]) -> Iterator[Callable[[TrainingState], None]]:
    """Show a bar for each adapter, with its losses and the time left; where there is no terminal, a line an epoch."""
    columns = (
        *(TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[losses]}")),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        rows: dict[str, TaskID] = {task.name: bars.add_task(task.name, total=None, losses="") for task in tasks}
        printed: dict[str, int] = {}

        def show(state: TrainingState) -> None:
            for name, task in state.tasks.items():
                bars.update(rows[name], completed=task.step, total=task.steps, losses=losses(task))
                epoch_ends = bool(task.held_out) and task.held_out[-1][0] == task.step
                if not console.is_terminal and epoch_ends and printed.get(name) != task.step:
                    printed[name] = task.step
                    line = f"{name}: step {task.step} of {task.steps}, {losses(task)}"
                    console.print_line(line)

        yield show


def losses(task: TaskState) -> str:
    """Return the last losses of a task in words."""
    text = f"loss {task.losses[-1]:.3f}" if task.losses else ""
    return f"{text}, held out {task.held_out[-1][1]:.3f}" if task.held_out else text


def show_report(console: Screen, report: dict[str, Any], state: TrainingState) -> None:
    """Print the curve in letters, a table, and what can be done next."""
    console.print_line(f"{output.loss_curve(state)}\n")
    table = Table("adapter", "parameters", "rows", "steps", "loss", "held-out loss", "folder")
    for row in report["adapters"]:
        held_out = " -> ".join(f"{loss:.4f}" for loss in row["held_out_loss"])
        rows = f"{row['examples']} + {row['held_out_examples']}"
        numbers = (f"{row['parameters']:,}", rows, str(row["steps"]), f"{row['loss']:.4f}", held_out)
        table.add_row(row["name"], *numbers, Text(row["folder"]))
    console.print(table)
    console.print(f"{report['seconds']:.0f} seconds", highlight=False)
