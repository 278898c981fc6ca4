"""AdamW, the learning rate's schedule and gradient clipping: torch's and transformers' formulas, on plain arrays."""

import math

from ..arrays import Array, namespace
from .arguments import TrainingArguments
from .parameters import Key, Parameters


def adamw(
    parameters: Parameters,
    gradients: Parameters,
    moments: tuple[Parameters, Parameters],
    step: int,
    learning_rate: float,
    arguments: TrainingArguments,
) -> tuple[dict[Key, Array], tuple[dict[Key, Array], dict[Key, Array]]]:
    """Return the parameters and both moments after one step; step counts from 1 (Loshchilov & Hutter 2019).

        x <- x - lr weight_decay x                       not for biases, as in transformers' Trainer
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        x <- x - lr / (1 - b1^step) m / (sqrt(v) / sqrt(1 - b2^step) + eps)

    in this order, as torch.optim.AdamW. Every array is a new one: those before the step stay what they were."""
    b1, b2 = arguments.adam_beta1, arguments.adam_beta2
    new: dict[Key, Array] = {}
    first, second = {}, {}
    for key, x in parameters.items():
        gradient = gradients[key]
        decay = 0.0 if key.part == "bias" else learning_rate * arguments.weight_decay
        first[key] = b1 * moments[0][key] + (1 - b1) * gradient
        second[key] = b2 * moments[1][key] + (1 - b2) * (gradient * gradient)
        root = namespace(x).sqrt(second[key]) / math.sqrt(1 - b2**step)
        new[key] = x * (1 - decay) - learning_rate / (1 - b1**step) * (first[key] / (root + arguments.adam_epsilon))
    return new, (first, second)


def learning_rate_at(step: int, steps: int, arguments: TrainingArguments) -> float:
    """The learning rate of a step, counted from 0, of so many (transformers/optimization.py).

    It rises from 0 during the warm-up; then, by lr_scheduler_type, it falls to 0 along half a
    cosine or a line, or stays."""
    warmup = warmup_steps(steps, arguments)
    if step < warmup:
        return arguments.learning_rate * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    factor = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    return arguments.learning_rate * factor[arguments.lr_scheduler_type]


def warmup_steps(steps: int, arguments: TrainingArguments) -> int:
    """How many of so many steps are warm-up; the first of them has the rate 0, in transformers as well."""
    return math.ceil(arguments.warmup_ratio * steps)


def global_norm(gradients: Parameters) -> float:
    """The root of the sum of all squares, over every parameter of one adapter. inf or NaN if a gradient is."""
    total = float(sum((gradient * gradient).sum() for gradient in gradients.values()))
    return math.sqrt(total) if math.isfinite(total) else total


def clipped(gradients: Parameters, norm: float, max_norm: float | None) -> Parameters:
    """Return the gradients scaled so that their global norm is at most max_norm, as torch.nn.utils.clip_grad_norm_."""
    factor = 1.0 if max_norm is None else max_norm / (norm + 1e-6)
    if factor >= 1:
        return gradients
    return {key: gradient * factor for key, gradient in gradients.items()}
