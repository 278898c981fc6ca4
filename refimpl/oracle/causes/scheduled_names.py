"""Of whose adapter a mistake is, where that is a matter of the steps that an engine computes its tokens in: of the
first row of a step, of the row before, of a tile's first row, of whoever is in a slot.

    step   a a a b b c        "the row before in its step": c reads b's adapter
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache

import numpy as np

from ...arrays import Array
from .candidate_schedules import SIMPLE
from .graphs import captured
from .kept_plans import kept_plans
from .length_names import by_length_left, by_length_of_others
from .line import Line
from .prefix_names import by_prefix
from .row_names import by_row
from .schedule import Schedule, Scheduled, Step
from .schedule_search import fitting_schedules
from .scheduled_rule import Scheduler
from .slot_names import in_slots, loaded_together, out_of_order, slots_in_steps
from .tables import RARE, from_tables

MISSED = 0.08  # of the tokens in which a mistake was made, that a name of its adapter may have wrong
RARER = 0.03  # of the tokens, that a rare name must fit more of than another one; larger: fewer coincidences
BETWEEN = 0.2  # the same where an engine tells its steps: what it does before a request has rows, nobody tells


@dataclass(frozen=True, eq=False)
class Table:
    """What each name means at each row of one batch, all of its steps one after another. Names are worked out a group
    at a time: to find a schedule few of them matter."""

    line: Line
    number: int  # which of its batches
    schedule: Schedule

    @cached_property
    def in_order(self) -> list[Step]:
        """The steps of the batch."""
        return self.line.steps(self.number, self.schedule)

    @cached_property
    def parts(self) -> tuple[Array, Array, Array, Array]:
        """Of each part of a request in a step: the step, the request, how many rows, and whether it is a decode
        step."""
        parts = [
            (n, one.request, one.length, one.is_decode) for n, step in enumerate(self.in_order) for one in step.rows
        ]
        step, request, length, decode = np.array(parts, int).T
        return step, request, length, decode

    @cached_property
    def owner(self) -> Array:
        """[rows]: of which request"""
        _, request, length, _ = self.parts
        return np.repeat(request, length)

    @cached_property
    def groups(self) -> tuple["Group", ...]:
        """All groups of names."""
        return tuple(Group(make, self) for make in GROUPS)

    @property
    def names(self) -> list[str]:
        """All names."""
        return [words for group in self.groups for words in group.codes]

    @property
    def codes(self) -> Array:
        """[names, rows]; by Line.codes"""
        return np.array([some for group in self.groups for some in group.codes.values()])

    def of(self, here: int, ways: Sequence[int] | None = None) -> Array:
        """The same at each token of one request, [names, tokens]. ways: the numbers of a few names; None: all."""
        some = (
            self.codes
            if ways is None
            else np.array([self.groups[group].rows[n] for group, n in map(_places().__getitem__, ways)])
        )
        return some[:, self.owner == here]


@dataclass(frozen=True, eq=False)
class Group:
    """Names that are worked out together."""

    make: Callable[[Table], dict[str, Array]]
    table: Table

    @cached_property
    def codes(self) -> dict[str, Array]:
        """name -> [rows], by Line.codes"""
        return self.make(self.table)

    @cached_property
    def rows(self) -> list[Array]:
        """The same by their numbers."""
        return list(self.codes.values())


def _by_row(table: Table) -> dict[str, Array]:
    """What others are to a row, by where it stands."""
    step, request, length, decode = table.parts
    part = np.repeat(np.arange(len(step)), length)  # of each row
    slots = slots_in_steps(table.line.batches[table.number], table.in_order)
    return _called(table, by_row(step, request, decode, part, slots[step, request]))


def _by_length(table: Table) -> dict[str, Array]:
    """Segments of wrong lengths."""
    requests, in_order = table.line.batches[table.number], table.in_order
    slots = slots_in_steps(requests, in_order)
    return _called(table, [*by_length_left(requests, in_order), *by_length_of_others(requests, in_order, slots)])


def _called(table: Table, of_requests: Iterable[tuple[str, Array]]) -> dict[str, Array]:
    called = [*(table.line.codes[one.called] for one in table.line.batches[table.number]), 0]  # the last one: the base
    words, owners = zip(*of_requests, strict=True)
    return dict(zip(words, np.array(called)[np.array(owners)], strict=True))


def _by_slot(table: Table) -> dict[str, Array]:
    """Who is in which slot."""
    step, _, length, _ = table.parts
    requests = table.line.batches[table.number]
    names = out_of_order(requests, table.in_order, table.line.codes)
    return names | in_slots(table.line, table.number, table.in_order, np.repeat(step, length), table.owner)


def _by_what_is_kept(table: Table) -> dict[str, Array]:
    """Graphs, lists and plans."""
    return _kept(table.line, table.schedule).of(table.number)


WHAT_IS_KEPT = (loaded_together, captured, kept_plans, from_tables, by_prefix)
GROUPS = (_by_row, _by_length, _by_slot, _by_what_is_kept)


@cache
def _places() -> list[tuple[int, int]]:
    """Return of each name its group, and which one there it is: the same in every table."""
    table = Table(Line([[Scheduled(2, 1, ())]]), 0, SIMPLE)
    return [(number, n) for number, group in enumerate(table.groups) for n in range(len(group.codes))]


@lru_cache(maxsize=1024)
def table_of(line: Line, number: int, schedule: Schedule) -> Table:
    """Return the table of one of an engine's batches."""
    return Table(line, number, schedule)


@dataclass(eq=False)
class Kept:
    """The names by what an engine keeps from step to step. Batch after batch: each goes on from the one before."""

    rest: Iterator[tuple[dict[str, Array], ...]]
    of_batches: list[dict[str, Array]] = field(default_factory=list)

    def of(self, number: int) -> dict[str, Array]:
        """Those of one batch."""
        while len(self.of_batches) <= number:
            self.of_batches.append({words: rows for some in next(self.rest) for words, rows in some.items()})
        return self.of_batches[number]


@lru_cache(maxsize=1024)
def _kept(line: Line, schedule: Schedule) -> Kept:
    return Kept(zip(*(of(line, schedule) for of in WHAT_IS_KEPT), strict=True))


@dataclass(frozen=True, eq=False)
class OfWhom:
    """A request, and of whose adapter a mistake may be in each of its tokens."""

    line: Line | None  # None: its batch is not known
    number: int  # which batch of that it is in
    here: int  # which request of the batch it is
    possible: Mapping[int, frozenset[str | None]]  # token -> what adapters are called

    def evidence(self) -> int:
        """A token of few adapters says most."""
        return sum(len(some) == 1 for some in self.possible.values())

    @cached_property
    def _is_possible(self) -> Array:
        """[tokens, codes]"""
        codes = self.line.codes if self.line else {}
        return np.array([[called in some for called in codes] for some in self.possible.values()], bool)

    def wrong(self, schedule: Schedule, ways: Sequence[int] | None = None) -> Array:
        """How many tokens each name has wrong. ways: the numbers of a few names; None: all."""
        if self.line is None:
            return np.zeros(0, int)
        at = table_of(self.line, self.number, schedule).of(self.here, ways)[:, list(self.possible)]
        return (~self._is_possible[np.arange(at.shape[1]), at]).sum(axis=1)


def names_in_steps(evidence: Sequence[OfWhom], scheduler: Scheduler) -> list[tuple[str, Schedule, str]]:
    """Return the names that fit nearly all tokens, best first, each with its schedule and with what is assumed. A
    schedule with which one fits all is known to the scheduler from then on."""
    some, names = (
        [one for one in evidence if one.line and one.possible],
        list[tuple[float, float, int, tuple[str, Schedule, str]]](),
    )
    if any(one.line and one.line.is_reported for one in some):  # what it tells nothing of has other names
        some = [one for one in some if one.line and one.line.is_reported]
    total = sum(len(one.possible) for one in some)
    schedules = [SIMPLE, *fitting_schedules(some, scheduler.schedules, scheduler.clock)] if total else []
    for schedule in dict.fromkeys(schedules):
        wrong = np.sum([one.wrong(schedule) for one in some], axis=0)
        words = table_of(some[0].line, some[0].number, schedule).names if some[0].line else []
        most = BETWEEN if some[0].line and some[0].line.is_reported else MISSED
        good = [n for n, count in enumerate(wrong) if count <= most * total]
        if all(of_token == {None} for one in some for of_token in one.possible.values()):
            good = [n for n in good if words[n] not in RARE]  # nobody's delta: many tables have nothing there
        for n in good:
            fits = f"(in {total - wrong[n]} of {total} tokens)" if wrong[n] else ""
            assumes = " ".join(filter(None, [fits, schedule.words]))
            handicap = RARER * total * (words[n] in RARE)
            names.append((int(wrong[n]) + handicap, schedule.cost, n, (words[n], schedule, assumes)))
    names.sort(key=lambda one: one[:3])
    if names and not names[0][0] and (schedule := names[0][3][1]) not in (SIMPLE, *scheduler.schedules):
        scheduler.schedules.append(schedule)
    return [name for *_, name in names]


def keys_in_steps(one: OfWhom, name: str, schedule: Schedule) -> list[str | None]:
    """Return what the adapter of this name is called at each token of a request; None: the base."""
    if one.line is None:
        return []
    table, called = table_of(one.line, one.number, schedule), list(one.line.codes)
    return [called[code] for code in table.of(one.here)[table.names.index(name)]]
