"""Chapter 7: is it the least recently used of the slots that nobody uses?

A case is a few slots; of each its number, when it was used, and by how many running requests it is.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from ... import kv_cache
from ...engine import Engine
from ...errors import LoracleError
from ...request import Request
from .. import voices
from ..exercise import Attempt, Exercise
from ..mistakes.ch07_select_victim import MISTAKES
from ..numbers import columns, is_whole, shown

TALKING = 16  # tokens that the pirate has said when others come: enough for half a sentence
DAY = ("pirate", "robot", "pirate", "merchant", "pirate", "merchant", "robot")  # who is asked for, one after the other
MOST_STEPS = 80  # of an engine in which somebody may wait for ever


@dataclass(frozen=True)
class Slot:
    """One full slot. `users` None: the counts do not mention it."""

    number: int
    last_used: int
    users: int | None = None


Case = tuple[Slot, ...]

slots = st.builds(Slot, st.integers(0, 3), st.integers(0, 3), st.sampled_from((None, 0, 1, 2)))
CASES = st.lists(slots, min_size=1, max_size=4, unique_by=(lambda slot: slot.number, lambda slot: slot.last_used)).map(
    tuple
)
FIXED: list[Case] = [
    (Slot(0, 0),),
    (Slot(1, 0),),
    (Slot(0, 0, 0),),
    (Slot(0, 0, 1),),
    (Slot(0, 0, 1), Slot(1, 1, 0)),
    (Slot(0, 0), Slot(1, 1)),
    (Slot(1, 0), Slot(0, 1)),
    (Slot(0, 1), Slot(1, 0)),
    (Slot(0, 1, 1), Slot(1, 0, 2)),
    (Slot(2, 0, 1), Slot(3, 1), Slot(1, 2, 0)),
    (Slot(2000, 10**9 + 1, 0), Slot(7, 10**9), Slot(0, 10**9 - 1, 300)),  # as in an engine after some weeks
]


def arguments(case: Case) -> tuple[dict[int, int], dict[int, int]]:
    """Fresh ones for each call: an attempt may change them."""
    users = {slot.number: slot.users for slot in case}
    counts = {number: count for number, count in users.items() if count is not None}
    return {slot.number: slot.last_used for slot in case}, counts


def result(attempt: Attempt, case: Case) -> tuple[Any, tuple[dict[int, int], dict[int, int]]]:
    """The victim, and the arguments as they are then."""
    tables = arguments(case)
    victim = attempt(*tables)
    return int(victim) if is_whole(victim) else victim, tables


def difference(attempt: Attempt, case: Case) -> str:
    victim, tables = result(attempt, case)
    expected = kv_cache.select_victim(*arguments(case))
    users = {slot.number: slot.users or 0 for slot in case}
    if victim is None and expected is None:
        return ""
    if victim is None:
        return f"Nobody uses slot {expected}, and you empty none: whoever waits for a slot will wait for ever."
    if not is_whole(victim) or victim not in users:
        return f"{victim!r} is none of the slots."
    if users[victim]:
        return f"Slot {victim} is in use: a running request goes on with what is loaded there now."
    if victim != expected:
        return f"Slot {victim} was used later than slot {expected}, and nobody uses either."
    return (
        ""
        if tables == arguments(case)
        else "The victim is right, but the engine's tables are not what they were before."
    )


def describe(attempt: Attempt, case: Case) -> list[str]:
    rows = [
        {
            "": f"slot {slot.number}",
            "last used": f"last used at {slot.last_used}",
            "users": "not counted" if slot.users is None else f"{slot.users} user{'s' * (slot.users != 1)}",
        }
        for slot in case
    ]
    expected = kv_cache.select_victim(*arguments(case))
    return [
        *columns(rows),
        f"yours     {shown(lambda: result(attempt, case)[0])}",
        f"expected  {expected}",
    ]


def behaviour(attempt: Attempt, case: Case) -> tuple[str, str]:
    victim, tables = result(attempt, case)
    return repr(victim), repr(tables)


def as_ops(attempt: Attempt) -> dict[str, Callable[..., Any]]:
    return {"select_victim": attempt}


def consequence(attempt: Attempt, case: Case) -> str:
    """With slots in use: does the pirate go on as itself? Without: how often is an adapter loaded?"""
    try:
        if any(slot.users for slot in case):
            right, wrong = what_the_pirate_says(None), what_the_pirate_says(attempt)
            return f"while others come and go, the pirate says {wrong!r} instead of {right!r}." * (right != wrong)
        right_loads, loads = loads_of_a_day(None), loads_of_a_day(attempt)
    except LoracleError as error:
        return f"it stops: {error}."
    except Exception as error:
        return f"it stops with {type(error).__name__}, and everybody's requests with it."
    if loads is None:
        return "a request waits for ever, although nobody uses the slots."
    return f"for {len(DAY)} requests in two slots an adapter is loaded {loads} times; {right_loads} would do." * (
        loads != right_loads
    )


def engine_with(attempt: Attempt | None, **options: Any) -> Engine:
    """Two adapter slots. Everybody may try to come in: that the victim is right is all that protects those inside."""
    steps = (as_ops(attempt) if attempt else {}) | {"admit": lambda waiting, in_use, capacity: range(len(waiting))}
    return Engine(voices.model(), voices.with_steps(steps), max_adapters=2, **options)


@functools.lru_cache(2)  # ours, and the last one
def what_the_pirate_says(attempt: Attempt | None) -> str:
    """Two slots. The pirate talks, the robot has been here, and now the merchant and the bard come at once."""
    engine, tokens = engine_with(attempt), []
    pirate = engine.add(Request(voices.prompt(), adapter=voices.voice("pirate")), 2 * TALKING)
    engine.add(Request(voices.prompt(), adapter=voices.voice("robot")), 1)
    for step in range(MOST_STEPS):
        if step == TALKING:
            for name in ("merchant", "bard"):
                engine.add(Request(voices.prompt(), adapter=voices.voice(name)), TALKING)
        tokens += [token.token_id for token in engine.step() if token.request_id == pirate]
        if len(tokens) == 2 * TALKING:
            break
    return voices.model().tokenizer.decode(tokens[TALKING:]).strip()


@functools.lru_cache(2)
def loads_of_a_day(attempt: Attempt | None) -> int | None:
    """How often an adapter is loaded for the requests of a day, in two slots; None if one of them is never served."""
    engine, loads = engine_with(attempt, prefix_caching=False), 0
    for name in DAY:
        adapter = voices.voice(name)
        loads += adapter not in engine.adapters.slot_of
        engine.add(Request([1], adapter=adapter), 1)
        if not engine.step():
            return None
    return loads


EXERCISE = Exercise(
    name="ch07_select_victim",
    title="Two thousand adapters",
    chapter="ch07_two_thousand",
    opens=("refimpl/adapter_cache.py", "refimpl/kv_cache.py"),
    minutes=45,
    hints=(
        "First: which slots may go at all? Only then: which of these was not used for the longest time?",
        "A slot without users may be counted with 0, or not be counted: dict.get has an answer for both.",
        "None may go when all are in use. Try your function on one slot that is used, and on one that has number 0.",
    ),
    function="select_victim",
    cases=CASES,
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    as_ops=as_ops,
)
