"""What a run leaves: PEFT folders that engines load, the loss curve, and the run's own record."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import diagrams
from ..formats.files import new_folder
from ..formats.peft import save_adapter
from ..loading.adapter_folder import WEIGHTS_FILE
from ..loading.peft_config import CONFIG_FILE
from .state import TaskState, TrainingState

DEFAULT = "default"  # PEFT's name of the adapter that lies in the folder itself; the others have a folder each
CURVE_FILE, RECORD_FILE = "loss.svg", "training.json"
FILES = (CURVE_FILE, RECORD_FILE, CONFIG_FILE, WEIGHTS_FILE)  # the names that no adapter's folder can have


def write_output(folder: Path, state: TrainingState, record: dict[str, Any], base: str | None = None) -> None:
    """Write a new folder, whole or not at all: the adapters, the loss of each step as loss.svg and in training.json.

    base: what PEFT calls base_model_name_or_path.
    LoracleError if there is something under that name, or the adapters cannot be saved."""
    with new_folder(folder) as scratch:
        write_adapters(scratch, state, base)
        (scratch / CURVE_FILE).write_text(loss_curve(state).document(), "utf-8")
        losses = {name: losses_of(task) for name, task in state.tasks.items()}
        (scratch / RECORD_FILE).write_text(json.dumps({**record, "losses": losses}, indent=1) + "\n", "utf-8")


def write_adapters(folder: Path, state: TrainingState, base: str | None = None) -> None:
    """Write each adapter as a PEFT folder, where adapter_folder says: new or empty folders."""
    for name in sorted(state.tasks, key=lambda name: name != DEFAULT):
        save_adapter(state.adapter(name), adapter_folder(folder, name), base=base)


def adapter_folder(folder: Path, name: str) -> Path:
    """Return where an adapter lies in an output folder, as PEFT's save_pretrained has it."""
    return folder if name == DEFAULT else folder / name


def loss_curve(state: TrainingState) -> diagrams.Diagram:
    """Return the losses of every task as a picture; a step is at the number of steps that were done before it.

    A line is the loss of each step's own rows, dots that of the held-out ones. One that is not finite is left out."""

    def finite(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
        return [(step, loss) for step, loss in points if math.isfinite(loss)]

    return diagrams.curves(
        {name: finite(list(enumerate(task.losses))) for name, task in state.tasks.items()},
        x="step",
        title=f"Loss of {', '.join(state.tasks)}",
        dots={name: finite(task.held_out) for name, task in state.tasks.items()},
        dots_are="held out",
    )


def losses_of(task: TaskState) -> dict[str, Any]:
    """Return the losses of one task for training.json."""
    return {"train": list(task.losses), "held_out": [list(point) for point in task.held_out]}
