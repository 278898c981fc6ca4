"""Chapter 5: does a step keep to its budget, leave no room while somebody waits, and serve who came first?

A case is what each request lacks, and the budget. The three promises have one schedule that keeps them all.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...engine import Engine
from ...errors import LoracleError
from ...ops import NUMPY
from ...request import Request
from .. import voices
from ..exercise import Attempt, Exercise, ReturnsNothing
from ..mistakes.ch05_schedule import MISTAKES
from ..numbers import plain, shown

BUDGET = 10  # tokens of a step in the consequence: less than half of a prompt
MOST_STEPS = 24  # of an engine in which somebody may wait for ever


@dataclass(frozen=True)
class Case:
    """What each request lacks, in the order in which they came, and the budget of the step."""

    missing: tuple[int, ...]
    budget: int


CASES = st.builds(Case, st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), st.integers(1, 6))
FIXED = [
    Case((1,), 1),
    Case((2,), 1),
    Case((2,), 2),
    Case((1, 1), 1),
    Case((2, 1), 1),
    Case((1, 2), 1),
    Case((1, 2), 2),
    Case((2, 2), 2),
    Case((2, 2, 1), 3),
    Case((1, 3, 1), 3),
    Case((1,) * 9 + (5000, 1, 20_000, 7), 8192),  # as in an engine
]


def result(attempt: Attempt, case: Case) -> list[Any]:
    """The schedule: an array, a tuple or what is yielded are as good as a list."""
    tokens = attempt(list(case.missing), case.budget)
    if tokens is None:
        raise ReturnsNothing
    return [n.item() if isinstance(n, np.generic) else n for n in tokens]


def difference(attempt: Attempt, case: Case) -> str:
    tokens, missing = result(attempt, case), case.missing
    if len(tokens) != len(missing):
        return f"There {'is 1 request' if len(missing) == 1 else f'are {len(missing)} requests'}: one number for each."
    for i, (n, lacks) in enumerate(zip(tokens, missing, strict=True)):
        if not isinstance(n, int) or n < 0:
            return f"Request {i} gets {n!r}: a number of tokens is whole, and not below 0."
        if n > lacks:
            return f"Request {i} lacks {lacks}, and gets {n}."
    if sum(tokens) > case.budget:
        return f"The step has {sum(tokens)} tokens, and its budget is {case.budget}."
    behind = [i for i, (n, lacks) in enumerate(zip(tokens, missing, strict=True)) if n < lacks]
    if behind and sum(tokens) < case.budget:
        return f"The step has room for {case.budget - sum(tokens)} more, and request {behind[0]} still lacks some."
    overtakers = [i for i, n in enumerate(tokens) if behind and i > behind[0] and n]
    return f"Request {overtakers[0]} gets some before request {behind[0]}, which came first." if overtakers else ""


def describe(attempt: Attempt, case: Case) -> list[str]:
    return [
        f"missing   {plain(case.missing)}   budget {case.budget}",
        f"yours     {shown(lambda: result(attempt, case))}",
        f"expected  {plain(NUMPY.schedule(case.missing, case.budget))}",
    ]


def behaviour(attempt: Attempt, case: Case) -> str:
    return plain(result(attempt, case))


def as_ops(attempt: Attempt) -> dict[str, Callable[..., Any]]:
    def schedule(missing: Sequence[int], budget: int) -> list[int]:
        return [int(n) for n in attempt(list(missing), budget)]

    return {"schedule": schedule}


def consequence(attempt: Attempt, case: Case) -> str:
    """The requests of the chapter, with a budget of ten: who waits? (The engine refuses a step above its budget.)"""
    try:
        last_steps, right = served(attempt), served(None)
    except LoracleError as error:
        return f"it stops: {error}."
    except Exception as error:
        return f"it stops with {type(error).__name__}, and everybody's requests with it."
    for name, step in right.items():
        if name not in last_steps:
            return f"the {name} is not done after {MOST_STEPS} steps; after {step}, its answer could be complete."
    late = [name for name, step in right.items() if last_steps[name] > step]
    return f"the {late[0]} is done after {last_steps[late[0]]} steps instead of {right[late[0]]}." if late else ""


@functools.lru_cache(2)  # ours, and the last one
def served(attempt: Attempt | None) -> dict[str, int]:
    """After how many steps each request was done."""
    steps = as_ops(attempt) if attempt else None
    engine = Engine(voices.model(), voices.with_steps(steps), max_batch_tokens=BUDGET)
    names: dict[int, str] = {}
    last_steps: dict[str, int] = {}
    for now in range(MOST_STEPS):
        for name, arrival, new_tokens in (("pirate", 0, 4), ("robot", 3, 3), ("merchant", 4, 2)):
            if arrival == now:
                request = Request(voices.prompt(), adapter=voices.voice(name))
                names[engine.add(request, new_tokens)] = name
        done = [token.request_id for token in engine.step() if token.finish_reason]
        last_steps |= {names[request_id]: now + 1 for request_id in done}
    return last_steps


EXERCISE = Exercise(
    name="ch05_schedule",
    title="Continuous batching and chunks",
    chapter="ch05_continuous_batching",
    opens=("refimpl/policies.py", "refimpl/scheduler.py"),
    minutes=50,
    hints=(
        "Go through the requests in order. What do you have to remember from one to the next?",
        "A request gets what it lacks, or what is left of the budget: which of the two?",
        "Try [2, 2] with a budget of 3. After the first one 1 is left; after the second one nothing, and nothing less.",
    ),
    function="schedule",
    cases=CASES,
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    as_ops=as_ops,
    may_change=True,
)
