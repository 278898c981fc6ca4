"""Of whose adapter a row is if an engine keeps that in a table from step to step, and does not write all of it anew.

    table[place[rows]] = adapter[rows]    # in some steps alone, or for some rows alone: not for the base, say
    adapter = table[place[rows]]          # in every step: at a place that was not written whoever was there before

A table has a place for each row of a step, for each decode row, for each request of a step, or for each that runs.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np

from ...arrays import Array
from .line import Line
from .schedule import Batch, Schedule, Step
from .steps import moved_places

MOST = 2048  # tokens of a batch, beyond which few names are worked out; larger: slower

# What stands in a table, and where.
PLACES = {
    "row": ("row", "at its place"),
    "decode row": ("decode row", "at its place"),
    "request": ("request", "at its place"),
    "running": ("request", "at its place among those that run"),
}
# When rows are written, in words: {} is what stands at which place.
BEGUN = "the last {} that stood {} when its request began"
PROMPTS = "the last {} of a prompt that stood {}"
BEFORE, ADAPTERS = "the {} {} in the step before", "the last {} with an adapter that stood {}"
WRITTEN = {
    BEFORE: "after it was read",
    ADAPTERS: "rows of adapters",
    PROMPTS: "rows of prompts",
    BEGUN: "rows of requests that begin",
    "the {} {} in the last step in which a request began": "steps in which a request begins",
    "the {} {} in the last step without prompt tokens": "steps without prompts",
    "the {} {} in the last step with prompt tokens": "steps with prompts",
    "the {} {} in the last step of another size than the one before": "steps of another size",
}
NONE = ", none where nothing stood there"  # else, where nothing did, its own
NEVER = (("decode row", PROMPTS), ("decode row", BEGUN))  # that nobody would write
EVERY = [kind for kind in product(PLACES, WRITTEN) if kind not in NEVER]
FEW = (("row", BEFORE), ("decode row", BEFORE), ("running", ADAPTERS))  # of engines whose steps are worked out
LAST = ADAPTERS.format(*PLACES["running"])
WHOSE = "the adapter in the slot of {}"


def _called(kinds: Iterable[tuple[str, str]]) -> frozenset[str]:
    words = [when.format(*PLACES[where]) for where, when in kinds]
    return frozenset(name for one in words for name in (one, WHOSE.format(one)))


# Names of which so many fit by chance that another one is preferred that is wrong in a few tokens.
RARE = frozenset(words for name in _called(EVERY) for words in (name, name + NONE)) - _called(FEW)


@dataclass(frozen=True, eq=False)
class StepRows:
    """One step: of each row what its adapter is called (Line.codes), its slot (-1: none), whether it is a decode step,
    and whether its request begins there; its places in the tables, -1: none."""

    codes: Array
    slots: Array
    is_decode: Array
    begins: Array
    places: Mapping[str, Array]
    moves: Sequence[tuple[int, int]]  # of those that run: to which place, from which, when it is done
    in_slots: Array  # what the adapters in the slots are called, and 0, the base, behind them
    is_resized: bool  # has it another number of rows than the one before?
    is_cached: bool

    @cached_property
    def written(self) -> dict[str, Array]:
        """Which rows are written to a table, by when it is."""
        everywhere = np.ones(len(self.codes), bool)
        return {
            "after it was read": everywhere,
            "rows of adapters": self.codes > 0,
            "rows of prompts": ~self.is_decode,
            "rows of requests that begin": self.begins,
            "steps in which a request begins": everywhere & self.begins.any(),
            "steps without prompts": everywhere & self.is_decode.all(),
            "steps with prompts": everywhere & ~self.is_decode.all(),
            "steps of another size": everywhere & self.is_resized,
        }


@dataclass(eq=False)
class Kept:
    """What stands at each place: what an adapter is called, and its slot; -2: nothing yet."""

    where: str
    when: str
    codes: Array = field(default_factory=lambda: np.zeros(0, int))
    slots: Array = field(default_factory=lambda: np.full(0, -2))

    def step(self, rows: StepRows) -> tuple[Array, Array, Array]:
        """Go through a step; return at each row the code, the slot, and whether anything stood there."""
        place = rows.places[self.where]
        if (more := 2 + int(place.max(initial=-1)) - len(self.codes)) > 0:  # nothing ever stands at the last one, -1
            self.codes, self.slots = np.pad(self.codes, (0, more)), np.pad(self.slots, (0, more), constant_values=-2)
        now = rows.written[self.when] & (place >= 0) & (not rows.is_cached)
        if self.when != "after it was read":
            self._write(place[now], rows, now)
        stood = (place >= 0) & (self.slots[place] > -2) & (not rows.is_cached)
        codes, slots = np.where(stood, self.codes[place], rows.codes), np.where(stood, self.slots[place], rows.slots)
        if self.when == "after it was read" and not rows.is_cached:
            self.forget()
            self._write(place[now], rows, now)
        for to, since in rows.moves if self.where == "running" else ():
            self.codes[to], self.slots[to] = self.codes[since], self.slots[since]
        return codes, slots, stood

    def forget(self) -> None:
        """Have nothing at any place."""
        self.slots[:] = -2

    def _write(self, place: Array, rows: StepRows, now: Array) -> None:
        self.codes[place], self.slots[place] = rows.codes[now], rows.slots[now]


def from_tables(line: Line, schedule: Schedule) -> Iterator[dict[str, Array]]:
    """Yield for each batch what adapter each name means at each of its rows; 0, the base."""
    is_reported = line.is_reported
    kinds = EVERY if is_reported else FEW
    tables = [Kept(where, WRITTEN[when]) for where, when in kinds]
    size = 0
    for n, requests in enumerate(line.batches):
        in_order = line.steps(n, schedule)
        names: dict[str, list[Array]] = {}
        short = sum(one.tokens for one in requests) <= MOST
        for table, kind in zip(tables, kinds, strict=True):
            if not short and kind not in FEW:
                table.forget()
        for rows in _rows(line, requests, in_order, size):
            size = size if rows.is_cached else len(rows.codes)
            for table, kind in zip(tables, kinds, strict=True):
                at_rows = table.step(rows) if short or kind in FEW else _of_rows(rows)
                for words, some in _named(kind, rows, *at_rows, with_none=is_reported):
                    names.setdefault(words, []).append(some)
        yield {words: np.concatenate(some) for words, some in names.items()}


def _named(
    kind: tuple[str, str], rows: StepRows, codes: Array, slots: Array, stood: Array, with_none: bool
) -> Iterator[tuple[str, Array]]:
    """Yield the names of one table, each with what adapter it means at each row of a step. codes, slots, stood: what
    the table has there. with_none: also as if what it has not were the base's."""
    where, when = kind
    words, in_slots = when.format(*PLACES[where]), np.where(slots >= 0, rows.in_slots[slots], codes)
    for called, some in ((words, codes), (WHOSE.format(words), in_slots)):
        yield called, some
        if with_none and where != "running":
            yield called + NONE, np.where(stood | rows.is_cached, some, 0)


def _of_rows(rows: StepRows) -> tuple[Array, Array, Array]:
    return rows.codes, rows.slots, np.ones(len(rows.codes), bool)


def _rows(line: Line, requests: Batch, in_order: Sequence[Step], size: int) -> Iterator[StepRows]:
    """Yield the steps of a batch. size: rows of the step before it."""
    called = np.array([line.codes[one.called] for one in requests])
    running, done, begun = list[int](), np.zeros(len(requests), int), set[int]()
    tokens = np.array([one.tokens for one in requests])
    for step in in_order:
        lengths = [one.length for one in step.rows]
        request = np.repeat([one.request for one in step.rows], lengths)
        decode = np.repeat([one.is_decode for one in step.rows], lengths)
        running += [one.request for one in step.rows if one.request not in running]
        new = {one.request for one in step.rows} - begun
        places = {
            "row": np.arange(len(request)),
            "decode row": np.where(decode, np.cumsum(decode) - 1, -1),
            "request": np.repeat(np.arange(len(step.rows)), lengths),
            "running": np.array([running.index(i) for i in request]),
        }
        np.add.at(done, request, 1)
        running, moves = moved_places(running, (done >= tokens).tolist())
        yield StepRows(
            called[request],
            np.array([one.slot_in(step.slots) for one in requests])[request],
            decode,
            np.isin(request, list(new)),
            places,
            moves,
            np.array([*(line.codes[key] for key in step.slots), 0]),
            len(request) != size,
            step.is_cached,
        )
        if not step.is_cached:
            begun, size = begun | new, len(request)
