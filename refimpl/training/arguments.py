"""How long and how fast to train: the arguments of transformers' TrainingArguments, with its names and meanings."""

import math
from dataclasses import dataclass

from ..errors import LoracleError

SCHEDULERS = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class TrainingArguments:
    """What all tasks of a run have in common.

    batch_tokens   of one task in one micro-batch, at most; an example that is longer is a micro-batch of its own
    seed           of the first A, the order of the examples and the dropout masks of every task
    gradient_accumulation_steps    micro-batches in one step; the loss is the mean over all of their targets
    gradient_checkpointing         keep only what each layer began with, and compute the rest again on the way back
    max_grad_norm  of one adapter's gradient; None: it is not clipped

    LoracleError, one line, for a value that means nothing."""

    epochs: int = 3
    learning_rate: float = 2e-4
    batch_tokens: int = 1024
    seed: int = 42
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_tokens", 1), ("gradient_accumulation_steps", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise LoracleError(f"{name} is {value!r}: it must be a whole number of {least} or more")
        for name in ("learning_rate", "weight_decay", "adam_epsilon"):
            _check_range(name, getattr(self, name), math.inf)
        if self.learning_rate == 0:
            raise LoracleError("learning_rate is 0: nothing would be learned")
        for name in ("warmup_ratio", "adam_beta1", "adam_beta2"):
            _check_range(name, getattr(self, name), 1)
        clip = self.max_grad_norm
        if clip is not None and (not isinstance(clip, int | float) or isinstance(clip, bool) or not clip > 0):
            raise LoracleError(f"max_grad_norm is {self.max_grad_norm!r}: it must be above 0, or None")
        if self.lr_scheduler_type not in SCHEDULERS:
            names = ", ".join(SCHEDULERS)
            raise LoracleError(f"lr_scheduler_type {self.lr_scheduler_type!r} is not one of {names}")


def _check_range(name: str, value: object, end: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < end:
        limit = "a finite number of 0 or more" if end == math.inf else f"at least 0 and below {end}"
        raise LoracleError(f"{name} is {value!r}: it must be {limit}")
