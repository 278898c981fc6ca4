"""A run on disk: one file with its last state, and with what it was a run of, so that no other goes on from it."""

import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array, to_host
from ..errors import DataError
from ..formats.files import write_safetensors
from ..loading.diagnostics import one_line, shown
from ..weights import Model
from .arguments import TrainingArguments
from .examples import Example, Task
from .state import TrainingState

STATE_FILE = "state.safetensors"
FORMAT = "1"  # of the file; one of another number is not read
SAMPLE = 64  # numbers of each tensor that stand for the base: a fine-tuned base of the same shape differs in them

ROWS = "--data, --held-out, --max-length or --cut"
OPTIONS = {  # of `loracle train`, which decide what is described; the others are called as it is
    "adapters": "--data, in this order",
    "base": "--model",
    "learning_rate": "--lr",
    "r": "--rank",
    "lora_alpha": "--alpha",
    "lora_dropout": "--dropout",
    "target_modules": "--targets",
    "use_rslora": "--rslora",
    "examples": ROWS,
    "held-out examples": ROWS,
}

Description = dict[str, Any]


def describe(model: Model, tasks: Sequence[Task], arguments: TrainingArguments) -> Description:
    """Return everything that the numbers of a run come from, as JSON has it: name -> value, or a digest of it."""
    description: Description = {"adapters": [task.name for task in tasks], "dtype": model.dtype}
    description["base"] = model_digest(model)
    description |= dataclasses.asdict(arguments)
    for task in tasks:
        description |= {f"{task.name}: {key}": value for key, value in dataclasses.asdict(task.config).items()}
        description[f"{task.name}: examples"] = examples_digest(task.examples)
        description[f"{task.name}: held-out examples"] = examples_digest(task.held_out)
    return json.loads(json.dumps(description))


def save_checkpoint(folder: Path, state: TrainingState, description: Description, seconds: float) -> None:
    """Write the state into the folder, in the place of the one before: at no time is there half of one.

    seconds: how long the run has taken so far. DataError if the folder cannot be written."""
    arrays = state.arrays()
    record = {"description": description, "seconds": seconds, "tasks": state.record(), "arrays": list(arrays)}
    scratch = folder / f".{STATE_FILE}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(scratch, arrays, {"format": FORMAT, "record": json.dumps(record)})
        os.replace(scratch, folder / STATE_FILE)
    except OSError as error:
        raise DataError(one_line(f"{folder}: cannot be written ({error})")) from None
    finally:
        if scratch.exists():
            scratch.unlink()


def load_checkpoint(folder: Path, description: Description, device: str = "cpu") -> tuple[TrainingState, float]:
    """Return the state in the folder, and the seconds that it took.

    DataError, one line, if there is none, if it is damaged, or if it is of another run: the line names the first
    argument, or the data, that differs, with both values."""
    arrays, record = read_state_file(folder / STATE_FILE)
    check_same_run(folder, record["description"], description)
    return TrainingState.of(arrays, record["tasks"], device), float(record["seconds"])


def steps_done(folder: Path) -> dict[str, tuple[int, int]]:
    """Return (step, steps) of each task of the run in the folder. DataError if there is none."""
    _, record = read_state_file(folder / STATE_FILE)
    return {name: (task["step"], task["steps"]) for name, task in record["tasks"].items()}


def read_state_file(file: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays and the record of a file that save_checkpoint wrote. DataError for any other."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            metadata = tensors.metadata() or {}
            if metadata.get("format") != FORMAT or "record" not in metadata:
                raise DataError(one_line(f"{file}: is no state of a training run that this version wrote"))
            record = json.loads(metadata["record"])
            # In the order in which they were: a norm is a sum over them, and its last bits depend on it.
            return {name: tensors.get_tensor(name) for name in record["arrays"]}, record
    except FileNotFoundError:
        raise DataError(one_line(f"{file}: is not there: there is no run to go on with")) from None
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(one_line(f"{file}: cannot be read ({error})")) from None


def check_same_run(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """DataError that names the first difference between what a run was started with and what it is to go on with."""
    for name in [*now, *before]:
        if name not in before or name not in now or before[name] != now[name]:
            values = " and ".join(
                f"{when} {shown(values[name]) if name in values else 'not there'}"
                for when, values in (("was", before), ("is now", now))
            )
            key = name.rpartition(": ")[2]
            option = OPTIONS.get(key, f"--{key.replace('_', '-')}")
            raise DataError(one_line(f"{folder}: is a run of something else: {name} {values} ({option})"))


def examples_digest(examples: Sequence[Example]) -> str:
    """Return how many examples there are, and a digest of their tokens and masks, in their order."""
    sha = hashlib.sha256()
    for example in examples:
        ids, mask = np.asarray(example.token_ids, np.int32), np.asarray(example.loss_mask, bool)
        sha.update(np.int64(ids.size).tobytes() + ids.tobytes() + mask.tobytes())
    return f"{len(examples)}, sha256 {sha.hexdigest()[:16]}"


def model_digest(model: Model) -> str:
    """Return a digest of the base: its config, and SAMPLE numbers or a few more of each tensor, evenly spread."""
    sha = hashlib.sha256(repr(model.config).encode())
    for tensor in model.arrays():
        flat = tensor.reshape(-1)
        sha.update(np.ascontiguousarray(to_host(flat[:: max(1, flat.size // SAMPLE)])).tobytes())
    return f"sha256 {sha.hexdigest()[:16]}"
