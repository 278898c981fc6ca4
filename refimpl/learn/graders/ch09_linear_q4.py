"""Chapter 9: the base exactly as four bits store it, the patch exactly as it was trained.

All numbers are whole or halves, and small enough that no order of summation rounds: right is what is equal.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array
from ...config import Module
from ...request import Request
from .. import voices
from ..exercise import Attempt, Exercise
from ..mistakes.ch09_linear_q4 import MISTAKES
from ..numbers import Primes, plain
from ..q4 import quantise
from ..whole_modules import Patch, whole_modules

CODES = (7, -3, 5, -2, 1)  # of each group, in this order: one is 7, so that its step is what `quantise` would choose
VOICE = "merchant"
SCENE = "Traveller: Good day, Dumpling. They say that you keep a royal moustache.\nDumpling:"
EXACT = 1e-9  # relative: whole numbers are right or not, but 3 / 7 * 7 need not be 3


@dataclass(frozen=True)
class Case:
    """Shapes, a scale, and whether x is large; the numbers are primes and CODES."""

    groups: int = 1
    size: int = 1  # of one group
    d_out: int = 1
    r: int = 1
    tokens: int = 1
    scale: float = 1.0
    large: bool = False


def arguments(case: Case) -> dict[str, Array | float]:
    """Fresh arguments of `linear_q4`."""
    primes, d_in = Primes(), case.groups * case.size
    if case.large:
        primes.last = 50  # x A^T is odd and beyond 2048: no float16 holds it
    x, A = primes((case.tokens, d_in)), primes((case.r, d_in))
    return {
        "x": x,
        "q": codes(case),
        "steps": primes((case.d_out, case.groups)) / 2,
        "A": A,
        "B": primes((case.d_out, case.r)),
        "scale": case.scale,
    }


def codes(case: Case) -> Array:
    """q: CODES turned by one from each group to the next, so that no two neighbours are alike."""
    groups = range(case.d_out * case.groups)
    turned = [np.roll(CODES[: case.size], -(number // case.groups + number % case.groups)) for number in groups]
    return np.array(turned, np.int8).reshape(case.d_out, -1)


def definition(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
    """y[t, j], number by number."""
    size, y = q.shape[1] // steps.shape[1], np.zeros((len(x), len(q)))
    for t, j in np.ndindex(*y.shape):
        base = sum(x[t, i] * float(q[j, i]) * steps[j, i // size] for i in range(q.shape[1]))
        y[t, j] = base + scale * (B[j] @ (A @ x[t]))
    return y


def without_patch(case: Case) -> dict[str, Array | float]:
    """The same, with a B of zeros: the base alone."""
    values = arguments(case)
    return values | {"B": 0 * values["B"]}


def off(attempt: Attempt, values: dict[str, Array | float]) -> str:
    """What is wrong with y in one sentence, or nothing."""
    result = attempt(*copies(values).values())
    if result is None:
        return "it returns nothing, and y is expected."
    y, right = np.asarray(result, float), definition(**values)  # type: ignore[arg-type]
    if y.shape != right.shape:
        return f"y is {list(y.shape)}, and should be {list(right.shape)}."
    if np.allclose(y, right, rtol=EXACT, atol=0):
        return ""
    largest = plain(float(np.abs(y - right).max()))
    return f"y is off by {largest}: all of these are whole numbers or halves, and nothing is to be rounded."


def copies(values: dict[str, Array | float]) -> dict[str, Array | float]:
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def difference(attempt: Attempt, case: Case) -> str:
    alone = off(attempt, without_patch(case))
    return f"Even where B is zero: {alone}" if alone else off(attempt, arguments(case))


def describe(attempt: Attempt, case: Case) -> list[str]:
    try:
        alone = off(attempt, without_patch(case))
    except Exception:  # it raises, and there is no "yours"
        return [shown(arguments(case))]
    values = without_patch(case) if alone else arguments(case)
    right = definition(**values)  # type: ignore[arg-type]
    given = shown({name: values[name] for name in ("x", "q", "steps")}) if alone else shown(values)
    return [given, f"yours {plain(attempt(*copies(values).values()))}  expected {plain(right)}"]


def shown(values: dict[str, Array | float]) -> str:
    return "  ".join(f"{name} {plain(value)}" for name, value in values.items())


def behaviour(attempt: Attempt, case: Case) -> str:
    return plain(np.asarray(attempt(*arguments(case).values()), float))


def consequence(attempt: Attempt, case: Case) -> str:
    """A voice on the embedded base in four bits, each layer computed by the attempt; and by the definition."""
    right, text = as_it_should_be(), served(attempt)
    if text == right:
        return f"on a base in four bits the {VOICE} still says {right!r}: nobody who reads it would know."
    return f"on a base in four bits the {VOICE} says {text!r}, and should say {right!r}."


@functools.lru_cache
def as_it_should_be() -> str:
    def apart(x: Array, q: Array, steps: Array, A: Array, B: Array, scale: float) -> Array:
        return x @ (q * np.repeat(steps, q.shape[1] // steps.shape[1], axis=1)).T + scale * (x @ A.T) @ B.T

    return served(apart)


def served(attempt: Attempt) -> str:
    """What the voice says to the Traveller."""
    model = voices.model()

    @functools.cache
    def codes(module: Module) -> tuple[Array, Array]:
        return quantise(model.linear(module).weight)

    def compute(x: Array, module: Module, patches: Sequence[Patch]) -> Array:
        if module[0] < 0 or not patches:  # the lm_head, and what the voice leaves alone
            return x @ model.linear(module).weight.T
        (patch,) = patches
        q, steps = codes(module)
        return np.asarray(attempt(x, q, steps, patch.A, patch.B, patch.scale), x.dtype)

    ids = [*voices.prompt(), *model.tokenizer.encode(SCENE)]
    text = voices.says([Request(ids, adapter=voices.voice(VOICE))], whole_modules(compute), 14)[0]
    return text.partition("\n")[0]


FIXED: Sequence[Case] = [
    Case(),
    Case(scale=2.0),
    Case(groups=2, size=2),
    Case(groups=2, size=1, d_out=2),
    Case(groups=2, size=2, d_out=2, r=2, tokens=2, scale=0.5),
    Case(groups=1, size=4, d_out=1, r=1),
    Case(groups=3, size=2, d_out=2, r=1, scale=2.0),
    Case(large=True),
    Case(groups=2, size=2, large=True, scale=2.0),
]

few = st.integers(1, 2)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    # Unless they are to be large, every number of x A^T is below 2048, where float16 has all whole numbers.
    groups, size, d_out = draw(few), draw(few), draw(few)
    r, tokens = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    scale = draw(st.sampled_from([1.0, 2.0, 0.5]))
    return Case(groups, size, d_out, r, tokens, scale, large=draw(st.booleans()))


EXERCISE = Exercise(
    name="ch09_linear_q4",
    title="What rounding does to a patch",
    chapter="ch09_rounding",
    opens=("refimpl/arrays.py", "refimpl/tools/merge.py", "refimpl/learn/q4.py"),
    minutes=50,
    hints=(
        "Two products that never meet before the end: one with the base as it is stored, one with the patch.",
        "Make W out of q and steps first, and print both for a case with two groups of two.",
        "The number at column i belongs to group i // (d_in / groups): each step stands for that many neighbours.",
    ),
    function="linear_q4",
    cases=cases(),
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    examples=80,
)
