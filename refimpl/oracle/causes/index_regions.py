"""For which tokens, where a step's rows are counted wrongly: a buffer that is as long as the step before needed it, a
grid of tiles that is too small. Of engines that tell their steps: of others too much would be possible.

    tiles = ceil(rows / 8)      # of a grid; but each adapter's segment begins a tile of its own
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from ...arrays import Array
from .candidate_schedules import SIMPLE
from .line import Line
from .regions import Region
from .schedule import Batch, Step

TILES = (4, 8, 16, 32)  # rows that a kernel takes together
PHASES = ("row", "prompt token", "decode row")  # of a step
BITS = 4.0  # of such a set of tokens


def regions_by_index(line: Line, number: int, here: int) -> list[Region]:
    """Return sets of tokens of a request. number: of its batch; here: which one of that it is."""
    owner, members = _members(line, number)
    return [Region(words, rows[owner == here], BITS) for words, rows in members.items()]


@lru_cache(maxsize=256)
def _members(line: Line, number: int) -> tuple[Array, dict[str, Array]]:
    """Return of each row of a batch, step after step, its request, and for each set whether it is in it."""
    requests, in_order = line.batches[number], line.steps(number, SIMPLE)
    owner = [one.request for step in in_order for one in step.rows for _ in range(one.length)]
    before = _counts(line.steps(number - 1, SIMPLE)[-1:]) if number else {}
    members: dict[str, list[Array]] = {}
    for step in in_order:
        for words, rows in _of_step(requests, step, before):
            members.setdefault(words, []).append(rows)
        before = before if step.is_cached else _counts([step])
    return np.array(owner, int), {words: np.concatenate(some) for words, some in members.items()}


def _counts(steps: Sequence[Step]) -> dict[str, int]:
    """Return how many rows of each phase there are."""
    return {phase: int(_in_phase(step, phase).sum()) for step in steps for phase in PHASES}


def _in_phase(step: Step, phase: str) -> Array:
    decode = np.repeat([one.is_decode for one in step.rows], [one.length for one in step.rows])
    return np.ones(len(decode), bool) if phase == "row" else decode == (phase == "decode row")


def _of_step(requests: Batch, step: Step, before: dict[str, int]) -> Iterator[tuple[str, Array]]:
    """Yield sets of the rows of one step. before: how many rows of each phase the step before had."""
    lengths = [one.length for one in step.rows]
    request = np.repeat([one.request for one in step.rows], lengths)
    slot = np.array([one.slot_in(step.slots) for one in requests])[request]
    place = np.concatenate([np.arange(length) for length in lengths])  # of each row among those of its request
    for phase in PHASES:
        counted = _in_phase(step, phase) & (not step.is_cached)
        index, count = np.where(counted, np.cumsum(counted) - 1, -1), int(counted.sum())
        own_lengths = np.unique(request[counted], return_counts=True)[1]
        first = int((request[counted] == request[counted][:1]).sum())
        some = f"{phase}s of a step"
        yield f"{some} beyond as many as the step before had", counted & (index >= before.get(phase, count))
        yield f"{some} beyond as many as it has requests", counted & (index >= len(own_lengths))
        yield f"{some} beyond as many as its longest request has", counted & (index >= own_lengths.max(initial=0))
        yield f"{some} beyond as many of each request as the first one has", counted & (place >= first)
        shortest = own_lengths.min(initial=count)
        yield f"{some} beyond as many of each request as the shortest has", counted & (place >= shortest)
        of_adapters = np.flatnonzero(counted & (slot >= 0))
        by_slot = of_adapters[np.argsort(slot[of_adapters], kind="stable")]
        for order, rows in (("", of_adapters), (", in the order of slots", by_slot)):
            for which, at in (("first", rows[:1]), ("last", rows[-1:])):
                yield f"the {which} {phase} of a step with an adapter{order}", np.isin(np.arange(len(counted)), at)
        for n in TILES:
            for whose, segment in (("request", request), ("adapter", slot)):
                tile = _tiles(np.where(counted & ((slot >= 0) | (whose == "request")), segment, -1), n)
                words = f"{some} in tiles of {n} of one {whose} each, beyond as many tiles as all rows fill"
                yield words, tile >= -(-count // n)


def _tiles(segment: Array, n: int) -> Array:
    """Return the number of each row's tile, if tiles are of n rows and of one segment; -1 for rows of none, -1."""
    tile, first = np.full(len(segment), -1), 0
    for one in np.unique(segment[segment >= 0]):
        rows = np.flatnonzero(segment == one)
        tile[rows] = first + np.arange(len(rows)) // n
        first += -(-len(rows) // n)
    return tile
