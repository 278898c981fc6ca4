"""Of whose adapter a mistake is, where that is a matter of the steps that an engine computes its tokens in: of the
first row of a step, of the row before, of a tile's first row, of whoever is in a slot.

    step   a a a b b c        "the row before in its step": c reads b's adapter
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ...arrays import Array
from .graphs import captured
from .kept_plans import kept_plans
from .length_names import by_length_left, by_length_of_others
from .line import Line
from .row_names import by_row
from .schedule import Schedule
from .schedule_search import SIMPLE, fitting_schedules
from .scheduled_rule import Scheduler
from .slot_names import in_slots, out_of_order, slots_in_steps

MISSED = 0.08  # of the tokens in which a mistake was made, that a name of its adapter may have wrong


@dataclass(frozen=True, eq=False)
class Table:
    """What each name means at each row of one batch, all of its steps one after another."""

    names: list[str]
    codes: Array  # [names, rows]; by Line.codes
    owner: Array  # [rows]: of which request

    def of(self, here: int) -> Array:
        """The same at each token of one request, [names, tokens]."""
        return self.codes[:, self.owner == here]


@lru_cache(maxsize=1024)
def table_of(line: Line, number: int, schedule: Schedule) -> Table:
    """Return the table of one of an engine's batches."""
    requests, in_order, codes = line.batches[number], line.steps(number, schedule), line.codes
    parts = [
        (number, one.request, one.length, one.is_decode) for number, step in enumerate(in_order) for one in step.rows
    ]
    step, request, length, decode = np.array(parts, int).T
    part = np.repeat(np.arange(len(parts)), length)  # of each row
    owner = request[part]
    called = np.array([*(codes[one.called] for one in requests), 0])  # the last one: the base
    slots = slots_in_steps(requests, in_order)
    of_requests = [*by_row(step, request, decode, part, slots[step, request]), *by_length_left(requests, in_order)]
    of_requests += by_length_of_others(requests, in_order, slots)
    names = {words: called[owners] for words, owners in of_requests}
    names |= out_of_order(requests, in_order, codes)
    names |= in_slots(line, number, in_order, step[part], owner)
    names |= captured(line, number, schedule)
    names |= kept_plans(line, number, schedule)
    return Table(list(names), np.array(list(names.values())), owner)


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

    def wrong(self, schedule: Schedule) -> Array:
        """How many tokens each name has wrong."""
        if self.line is None:
            return np.zeros(0, int)
        at = table_of(self.line, self.number, schedule).of(self.here)[:, list(self.possible)]
        return (~self._is_possible[np.arange(at.shape[1]), at]).sum(axis=1)


def names_in_steps(evidence: Sequence[OfWhom], scheduler: Scheduler) -> list[tuple[str, Schedule, str]]:
    """Return the names that fit nearly all tokens, best first, each with its schedule and with what is assumed."""
    some, names = (
        [one for one in evidence if one.line and one.possible],
        list[tuple[int, float, int, tuple[str, Schedule, str]]](),
    )
    total = sum(len(one.possible) for one in some)
    for schedule in (SIMPLE, *fitting_schedules(some, scheduler.schedules, scheduler.clock)) if total else ():
        wrong = np.sum([one.wrong(schedule) for one in some], axis=0)
        words = table_of(some[0].line, some[0].number, schedule).names if some[0].line else []
        good = [n for n, count in enumerate(wrong) if count <= MISSED * total]
        for n in good:
            fits = f"(in {total - wrong[n]} of {total} tokens)" if wrong[n] else ""
            assumes = " ".join(filter(None, [fits, schedule.words]))
            names.append((int(wrong[n]), schedule.cost, n, (words[n], schedule, assumes)))
    return [name for *_, name in sorted(names, key=lambda one: one[:3])]


def keys_in_steps(one: OfWhom, name: str, schedule: Schedule) -> list[str | None]:
    """Return what the adapter of this name is called at each token of a request; None: the base."""
    if one.line is None:
        return []
    table, called = table_of(one.line, one.number, schedule), list(one.line.codes)
    return [called[code] for code in table.of(one.here)[table.names.index(name)]]
