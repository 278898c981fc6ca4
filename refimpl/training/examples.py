"""What is learned from: token ids, which of them are targets, and in which batches a task meets them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import ModelConfig
from ..errors import LoracleError
from .arguments import TrainingArguments
from .lora_config import LoraConfig
from .trainable import check_trainable

SHUFFLE, DROPOUT = 1, 2  # what the generators of a run are for: the second number of their seeds

Microbatch = list[int]  # the numbers of its examples
Step = list[Microbatch]


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence. loss_mask says of each token whether it is to be learned: a completion's are, a prompt's are not.

    The first token follows nothing, so that it is never learned, whatever its mask says."""

    token_ids: Sequence[int]
    loss_mask: Sequence[bool]

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return int(np.count_nonzero(np.asarray(self.loss_mask, bool)[1:]))


@dataclass(frozen=True, eq=False)
class Task:
    """One adapter to train: its name, its shape, and what it learns from. The loss on held_out is only measured."""

    name: str
    config: LoraConfig
    examples: Sequence[Example]
    held_out: Sequence[Example] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "Task")
        if not isinstance(self.config, LoraConfig):
            raise LoracleError(f"{self.name}: the config is {self.config!r}, not a LoraConfig")


def check_name(name: object, where: str) -> None:
    """LoracleError unless it can be the name of a folder anywhere: letters, digits, '-', '_' and '.'."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):
        raise LoracleError(
            f"{where}: the name {name!r} is not of letters, digits, '-', '_' and '.', or begins with the last"
        )


def check_task(task: Task, base: ModelConfig) -> None:
    """LoracleError that names the task and the example, for data that this base cannot be trained on."""
    check_trainable(base, task.name)
    if not task.examples:
        raise LoracleError(f"{task.name}: there are no examples")
    for kind, examples in (("example", task.examples), ("held-out example", task.held_out)):
        for i, example in enumerate(examples):
            where, ids = f"{task.name}: {kind} {i}", np.asarray(example.token_ids)
            if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
                raise LoracleError(f"{where}: token_ids must be a flat list of integers")
            if len(example.loss_mask) != ids.size:
                raise LoracleError(f"{where}: {ids.size} token ids, but {len(example.loss_mask)} in loss_mask")
            outside = ids[(ids < 0) | (ids >= base.vocab_size)]
            if outside.size:
                raise LoracleError(f"{where}: token id {outside[0]} is outside of the vocabulary of {base.vocab_size}")
            if ids.size > base.max_position_embeddings:
                most = base.max_position_embeddings
                raise LoracleError(f"{where}: {ids.size} tokens are more than the model's {most} positions")
            if example.targets == 0:
                raise LoracleError(f"{where}: no token after the first is to be learned")


@dataclass(frozen=True)
class Schedule:
    """A task's steps, of all epochs, and how many of them are done at the end of each epoch."""

    steps: list[Step]
    epoch_ends: frozenset[int]


def schedule_of(examples: Sequence[Example], arguments: TrainingArguments) -> Schedule:
    """Return the steps of all epochs. No micro-batch reaches across two, so that each epoch sees each example once."""
    epochs = [epoch_steps(examples, arguments, epoch) for epoch in range(arguments.epochs)]
    ends = np.cumsum([len(steps) for steps in epochs]).tolist()
    return Schedule([step for steps in epochs for step in steps], frozenset(ends))


def epoch_steps(examples: Sequence[Example], arguments: TrainingArguments, epoch: int) -> list[Step]:
    """Return the steps of one epoch; the last may hold fewer micro-batches than the others.

    Each epoch has its own order, from a generator of (seed, epoch): what a step holds depends on nothing before it."""
    order = np.random.default_rng([arguments.seed, SHUFFLE, epoch]).permutation(len(examples)).tolist()
    batches = list(microbatches(examples, order, arguments.batch_tokens))
    size = arguments.gradient_accumulation_steps
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def microbatches(examples: Sequence[Example], order: Sequence[int], batch_tokens: int) -> Iterator[Microbatch]:
    """Yield the examples in this order, as many at a time as fit into batch_tokens, and at least one."""
    batch: Microbatch = []
    tokens = 0
    for i in order:
        length = len(examples[i].token_ids)
        if batch and tokens + length > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += length
    if batch:
        yield batch
