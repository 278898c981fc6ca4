"""What `loracle train` learns: the adapters that --data, --rank, --alpha and --targets name, each as a task."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..config import LAYER_MODULES
from ..errors import DataError, RequestError
from ..loading.model_folder import base_folder
from ..training import output
from ..training.chat import load_chat_template
from ..training.data import Encoder, read_dataset, split
from ..training.examples import Task, check_name
from ..training.lora_config import LoraConfig, lora_modules
from ..weights import Model
from .common import BASE
from .texts import prompt_text

ALL_LINEAR = "all-linear"  # PEFT's name for every linear layer but the lm_head
T = TypeVar("T")


def read_tasks(args: argparse.Namespace, model: Model) -> tuple[list[Task], list[str]]:
    """Return one task for each --data, and what its owner should know of the files."""
    files = data_files(args.data, args.adapter_name)
    ranks = per_name("--rank", args.rank, files, int)
    alphas = per_name("--alpha", args.alpha, files, float)
    encoder = Encoder.of(
        model.tokenizer,
        model.config,
        args.max_length,
        cut=args.cut,
        end_prompt=lambda text: prompt_text(model, text),
        template=load_chat_template(base_folder(args.model)),
    )
    tasks, notes = [], []
    for name, file in files.items():
        rank = ranks.get(name, LoraConfig().r)
        config = LoraConfig(
            r=rank,
            lora_alpha=alphas.get(name, 2 * rank),
            target_modules=LAYER_MODULES if args.targets == ALL_LINEAR else tuple(args.targets.split(",")),
            use_rslora=args.rslora,
            lora_dropout=args.dropout,
        )
        lora_modules(config, model.config)  # a target that is none is said at once
        dataset = read_dataset(file, encoder)
        notes += [f"{file}: {note}" for note in dataset.notes]
        try:
            examples, held_out = split(dataset.examples, args.held_out, args.seed)
        except DataError as error:
            raise DataError(f"{file}: {error}") from None
        tasks.append(Task(name, config, examples, held_out))
    return tasks, notes


def data_files(items: Sequence[str], adapter_name: str | None) -> dict[str, Path]:
    """Return the file of each adapter by its name; RequestError for a name that is taken, or cannot be a folder's."""
    if not items:
        raise RequestError("nothing to learn: give --data FILE.jsonl, or --data NAME=FILE.jsonl for each adapter")
    files: dict[str, Path] = {}
    for item in items:
        name, equals, file = item.partition("=")
        if not equals:
            name, file = adapter_name or output.DEFAULT, item
            if len(items) > 1:
                raise RequestError(f"--data {item}: of several, each needs a name: --data NAME=FILE.jsonl")
        elif adapter_name is not None:
            raise RequestError(f"--adapter-name {adapter_name}: --data {item} has a name already")
        check_name(name, f"--data {item}" if equals else f"--adapter-name {name}")
        if not file or "://" in file:
            raise RequestError(f"--data {item}: expected a file on this machine, [NAME=]FILE.jsonl")
        if name.casefold() in map(str.casefold, (BASE, *output.FILES, *files)):  # to many disks A and a are one name
            raise RequestError(f"--data {item}: the name {name!r} is taken")
        files[name] = Path(file)
    return files


def per_name(flag: str, items: Sequence[str], names: Mapping[str, object], kind: type[T]) -> dict[str, T]:
    """Return the value of each name that has one: [NAME=]VALUE, where one without a name is for all the others."""
    values: dict[str, T] = {}
    common: list[T] = []
    for item in items:
        name, equals, text = item.rpartition("=")
        try:
            value = kind(text)  # type: ignore[call-arg]
        except ValueError:
            raise RequestError(f"{flag} {item}: {text!r} is no {'whole ' if kind is int else ''}number") from None
        if equals and name not in names:
            raise RequestError(f"{flag} {item}: no --data has the name {name!r}; there are {', '.join(names)}")
        if name in values or (not equals and common):
            raise RequestError(f"{flag} {item}: is given twice")
        if equals:
            values[name] = value
        else:
            common.append(value)
    return {name: common[0] for name in names if common} | values
