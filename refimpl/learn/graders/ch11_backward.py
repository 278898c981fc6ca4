"""Chapter 11: gradients of whole numbers, held against central differences.

The loss sum(dy * y) is linear in each of A, B and x alone, so that (loss(+1) - loss(-1)) / 2 is its slope exactly: the
grader needs no formula of its own, and no tolerance.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from ...adapter_slots import AdapterSlots
from ...arrays import Array, Precision
from ...config import Module
from ...plans import LoraMapping
from ...training import Example, LoraConfig, Task, TrainingArguments, train
from ...training.gradient_ops import GRADIENTS
from ...training.lora_gradients import Gradients, add_gradients
from ...training.parameters import Key
from .. import voices
from ..exercise import Attempt, Exercise
from ..mistakes.ch11_backward import MISTAKES, gradients
from ..numbers import Primes, columns, listed, plain

NAMES = ("dA", "dB", "dx")
STEPS = 8  # of the training that the consequence shows: more take longer, and differ more


@dataclass(frozen=True)
class Case:
    """The shapes and the scale; the numbers are primes."""

    tokens: int = 1
    d_in: int = 1
    d_out: int = 1
    r: int = 1
    scale: float = 2.0


def arguments(case: Case) -> dict[str, Array | float]:
    """Fresh arguments of `backward`."""
    primes = Primes()
    return {
        "x": primes((case.tokens, case.d_in)),
        "A": primes((case.r, case.d_in)),
        "B": primes((case.d_out, case.r)),
        "scale": case.scale,
        "dy": primes((case.tokens, case.d_out)),
    }


def loss(x: Array, A: Array, B: Array, scale: float, dy: Array) -> float:
    """sum(dy * y), token by token."""
    return float(sum(dy[t] @ (scale * (B @ (A @ x[t]))) for t in range(len(x))))


def slopes(case: Case, name: str) -> Array:
    """How much the loss grows with each number of one argument."""
    values = arguments(case)[name]
    assert isinstance(values, np.ndarray)
    result = np.empty_like(values)
    for index in np.ndindex(*values.shape):
        above, below = arguments(case), arguments(case)
        above[name][index] += 1  # type: ignore[index]
        below[name][index] -= 1  # type: ignore[index]
        result[index] = (loss(**above) - loss(**below)) / 2  # type: ignore[arg-type]
    return result


def yours(attempt: Attempt, case: Case) -> list[Array] | None:
    """What the attempt returns, as three arrays; None where it is not three."""
    result = listed(attempt(*arguments(case).values()))
    if not isinstance(result, tuple | list) or len(result) != 3:
        return None
    return [np.asarray(part, float) for part in result]


def expected(case: Case) -> list[Array]:
    return [slopes(case, name) for name in ("A", "B", "x")]


def difference(attempt: Attempt, case: Case) -> str:
    parts = yours(attempt, case)
    if parts is None:
        return "Three arrays are expected, dA, dB and dx."
    for name, part, right in zip(NAMES, parts, expected(case), strict=True):
        if part.shape != right.shape:
            return f"{name} has shape {list(part.shape)}, and what it is the gradient of has {list(right.shape)}."
        if not equal(part, right):
            return f"{name} is not how much the loss grows with {name[1:]}."
    return ""


def describe(attempt: Attempt, case: Case) -> list[str]:
    given = "  ".join(f"{name} {plain(value)}" for name, value in arguments(case).items())
    try:
        parts = yours(attempt, case)
    except Exception:  # it raises, and there is no "yours"
        parts = None
    rows = [
        {"": name, "yours": f"yours {plain(part)}", "expected": f"expected {plain(right)}"}
        for name, part, right in zip(NAMES, parts or (), expected(case), strict=False)
        if not equal(part, right)
    ]
    return [given, *columns(rows)]


def equal(part: Array, right: Array) -> bool:
    return part.shape == right.shape and np.array_equal(part, right)


def behaviour(attempt: Attempt, case: Case) -> tuple[str, ...]:
    return tuple(plain(part) for part in yours(attempt, case) or ())


def consequence(attempt: Attempt, case: Case) -> str:
    """Train one sentence with the attempt in the place of the gradient, and with ours."""
    try:
        right, after = right_losses(), losses(attempt)
    except (ValueError, TypeError):
        return "no step of training can be made: the gradients do not fit what they are gradients of."
    return (
        f"a voice that learns one sentence comes from a loss of {right[0]:.2f} to {right[-1]:.3f} in {STEPS} steps; "
        f"with your gradients to {after[-1]:.3f}."
    )


@functools.lru_cache
def right_losses() -> list[float]:
    return losses(gradients)


def losses(attempt: Attempt) -> list[float]:
    """The loss of each step of a small training run."""
    ids = voices.prompt()[-4:] + voices.model().tokenizer.encode("Dumpling: Arr! The royal moustache be yers.\n")
    config = LoraConfig(r=4, lora_alpha=16, target_modules=("v_proj", "down_proj"))
    task = Task("one_sentence", config, [Example(ids, [i >= 4 for i in range(len(ids))])])
    arguments = TrainingArguments(epochs=STEPS, learning_rate=5e-3, lr_scheduler_type="constant", warmup_ratio=0.0)
    gradient_ops = replace(GRADIENTS, lora_delta=as_gradient_op(attempt))
    state = train(voices.model(), [task], arguments, gradient_ops=gradient_ops)
    return list(state.tasks["one_sentence"].losses)


def as_gradient_op(attempt: Attempt) -> Callable[..., tuple[Array, Array, Gradients]]:
    """The attempt as the step of the backward pass, one segment of the batch at a time."""

    def lora_delta(
        dy: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> tuple[Array, Array, Gradients]:
        resident, by_id = adapters.at(module), x.dtype.kind in "iu"  # at the embedding, which has no LoRA here
        dx = np.zeros((len(x), 0 if by_id else x.shape[1]), dy.dtype)
        collected: Gradients = {}
        for segment in mapping.device.columns[0].segments:
            if segment.slot in resident:
                lora, rows = resident[segment.slot], segment.rows
                dA, dB, dx_rows = attempt(x[rows].copy(), lora.A.copy(), lora.B.copy(), lora.scale, dy[rows].copy())
                dx[rows] = dx_rows
                add_gradients(collected, segment.slot, {Key(module, "A"): dA, Key(module, "B"): dB})
        return dy, dx, collected

    return lora_delta


FIXED: Sequence[Case] = [
    Case(),
    Case(tokens=2),
    Case(tokens=2, d_in=2, d_out=3, r=1, scale=0.5),
    Case(tokens=1, d_in=2, d_out=2, r=2),
    Case(tokens=3, d_in=2, d_out=1, r=2, scale=1.0),
]

few = st.integers(1, 2)
EXERCISE = Exercise(
    name="ch11_backward",
    title="Where an adapter comes from",
    chapter="ch11_training",
    opens=("refimpl/training/lora_gradients.py", "refimpl/training/gradients.py", "refimpl/training/backward.py"),
    minutes=55,
    hints=(
        "Write y as two steps, u = x A^T and y = scale * u B^T, and go back through the second one first.",
        "The shapes leave little choice: dB is [d_out, r], so the tokens of dy and of u must be summed away.",
        "From dy through B you get du [tokens, r]. Both dA and dx are made of du: one with x, the other with A.",
    ),
    function="backward",
    cases=st.builds(Case, few, few, few, few, st.sampled_from([2.0, 0.5, 3.0])),
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    examples=60,
)
