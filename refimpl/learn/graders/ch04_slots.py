"""Chapter 4: does every token's key go where its request's table says?

A case is a block size and the requests of a batch: how many tokens of each lie in the cache, and how many are new.
Their blocks are dealt in any order, as they are when requests come, grow and go.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array, ceil_div
from ...plans import NO_BLOCK
from .. import voices
from ..exercise import Attempt, Exercise, ReturnsNothing
from ..mistakes.ch04_slots import MISTAKES
from ..numbers import columns, is_whole, listed, plain, shown

BLOCK_SIZE = 4  # of the engine: a smaller one makes more blocks of the tenants' prompts, which then scatter sooner


@dataclass(frozen=True)
class Part:
    """One request's share of the batch."""

    computed: int
    tokens: int
    table: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One batch."""

    block_size: int
    parts: tuple[Part, ...]

    def arguments(self) -> dict[str, Any]:
        """Fresh ones for each call: an attempt may change them."""
        longest = max(len(part.table) for part in self.parts)
        tables = [[*part.table, *[NO_BLOCK] * (longest - len(part.table))] for part in self.parts]
        positions = [part.computed + i for part in self.parts for i in range(part.tokens)]
        return {
            "block_tables": np.array(tables, np.int32),
            "positions": np.array(positions, np.int32),
            "query_starts": np.cumsum([0, *(part.tokens for part in self.parts)]).astype(np.int32),
            "block_size": self.block_size,
        }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block_size = draw(st.integers(1, 3))
    shares = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=3))
    counts = [ceil_div(computed + tokens, block_size) for computed, tokens in shares]
    blocks = iter(draw(st.permutations(range(sum(counts)))))
    return Case(
        block_size,
        tuple(
            Part(computed, tokens, tuple(next(blocks) for _ in range(count)))
            for (computed, tokens), count in zip(shares, counts, strict=True)
        ),
    )


FIXED = [
    Case(1, (Part(0, 1, (0,)), Part(0, 1, (1,)))),
    Case(1, (Part(0, 2, (1, 0)),)),
    Case(2, (Part(1, 1, (0,)),)),
    Case(2, (Part(0, 2, (1,)),)),
    Case(2, (Part(2, 2, (0, 1)),)),
    Case(2, (Part(2, 3, (2, 0, 3)), Part(1, 1, (1,)))),
    Case(3, (Part(0, 1, (1,)), Part(3, 2, (2, 0)))),
    Case(16, (Part(90, 3, (5, 1, 3000, 0, 2, 9000)), *(Part(1, 1, (6 + i,)) for i in range(4)))),  # as in an engine
]


def expected(case: Case) -> list[int]:
    """The definition, for one token after the other."""
    size = case.block_size
    positions = [(part, part.computed + i) for part in case.parts for i in range(part.tokens)]
    return [part.table[position // size] * size + position % size for part, position in positions]


def result(attempt: Attempt, case: Case) -> list[Any]:
    """What the attempt returns, as a list."""
    slots = attempt(*case.arguments().values())
    if slots is None:
        raise ReturnsNothing
    numbers: list[Any] = np.asarray(listed(slots)).tolist()
    return numbers


def difference(attempt: Attempt, case: Case) -> str:
    slots, right = result(attempt, case), expected(case)
    if slots == right:
        other = next((slot for slot in slots if not is_whole(slot)), None)
        return "" if other is None else f"There is a slot {other!r}: the number of a slot is whole, an int."
    if np.shape(slots) != np.shape(right):
        return f"It returns an array {list(np.shape(slots))}, where one {list(np.shape(right))} is expected: [tokens]."
    t = next(t for t in range(len(right)) if slots[t] != right[t])
    request = next(i for i in range(len(case.parts)) if t < sum(part.tokens for part in case.parts[: i + 1]))
    position = case.arguments()["positions"][t]
    return f"Token {t} is at position {position} of request {request}: that is slot {right[t]}."


def describe(attempt: Attempt, case: Case) -> list[str]:
    arguments = case.arguments()
    starts = arguments["query_starts"]
    requests = [
        {
            "": f"request {i}",
            "table": f"block table {plain(table)}",
            "positions": f"positions {plain(arguments['positions'][starts[i] : starts[i + 1]])}",
        }
        for i, table in enumerate(arguments["block_tables"])
    ]
    return [
        *columns(requests),
        f"block_size {case.block_size}",
        f"yours     {shown(lambda: result(attempt, case))}",
        f"expected  {plain(expected(case))}",
    ]


def behaviour(attempt: Attempt, case: Case) -> str:
    return plain(result(attempt, case))


def as_ops(attempt: Attempt) -> dict[str, Callable[..., Any]]:
    def slot_mapping(block_tables: Array, positions: Array, query_start_loc: Array, block_size: int) -> Array:
        return np.asarray(attempt(block_tables, positions, query_start_loc, block_size), np.int32)

    return {"slot_mapping": slot_mapping}


def consequence(attempt: Attempt, case: Case) -> str:
    return voices.change_for_a_tenant(as_ops(attempt), block_size=BLOCK_SIZE)


EXERCISE = Exercise(
    name="ch04_slots",
    title="Keys and values in pages",
    chapter="ch04_pages",
    opens=("refimpl/kv_cache.py", "refimpl/attention.py"),
    minutes=45,
    hints=(
        "Take one token: in which block of its request is position 5, if a block holds 4? And where in that block?",
        "A block's number in the table says where its slots begin in the cache. How many slots lie before block b?",
        "Whose token is it? np.repeat(np.arange(requests), np.diff(query_starts)) says it for all of them at once.",
    ),
    function="slots",
    cases=cases(),
    difference=difference,
    describe=describe,
    behaviour=behaviour,
    fixed=FIXED,
    mistakes=MISTAKES,
    consequence=consequence,
    as_ops=as_ops,
)
