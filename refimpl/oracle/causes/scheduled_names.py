"""Of whose adapter a mistake is, where that is a matter of the steps that an engine computes its tokens in: of the
first row of a step, of the row before, of a tile's first row, of whoever is in a slot.

    step   a a a b b c        "the row before in its step": c reads b's adapter
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ...arrays import Array
from .graphs import captured
from .line import Line
from .schedule import Batch, Schedule, Step
from .schedule_search import SIMPLE, fitting_schedules
from .scheduled_rule import Scheduler

TILES = (4, 8, 16, 32)  # rows that a kernel takes together
MOST_SLOTS = 4  # whose numbers are names
COUNTED = (
    "is as many-th to come in its step as its own is slot by slot",
    "is as many-th slot by slot in its step as its own is to come",
)
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
    slots = _slots(requests, in_order)
    of_requests = [*_owners(step, request, decode, part, slots[step, request]), *_by_rest(requests, in_order)]
    of_requests += _by_length_of_others(requests, in_order, slots)
    names = {words: called[owners] for words, owners in of_requests}
    names |= _out_of_order(requests, in_order, codes)
    names |= _in_slots(line, number, in_order, step[part], owner)
    names |= captured(line, number, schedule)
    return Table(list(names), np.array(list(names.values())), owner)


def _owners(step: Array, request: Array, decode: Array, part: Array, slots: Array) -> Iterator[tuple[str, Array]]:
    """Yield for each name which request it means at each row, -1 the base. Of each part of a request in a step are
    given its step, its request, whether it is a decode step, and the slot of its adapter, -1: none; of each row its
    part."""
    yield from _among(step, request, part, slots, "in its step")
    phase = step * 2 + decode
    parts, rows = np.argsort(phase, kind="stable"), np.argsort(phase[part], kind="stable")  # prompts first in each step
    part_of = np.repeat(np.arange(len(parts)), np.bincount(part)[parts])

    def placed(owners: Array) -> Array:
        return owners[np.argsort(rows)]

    for words, owners in _among(
        phase[parts], request[parts], part_of, slots[parts], "among the rows of its phase in its step"
    ):
        yield words, placed(owners)
    of_row, owner = phase[part][rows], request[part][rows]
    prompts = of_row // 2 * 2
    at = np.searchsorted(of_row, prompts) + np.arange(len(rows)) - np.searchsorted(of_row, of_row)
    at = np.minimum(at, len(rows) - 1)
    yield "the prompt token at its place in its step", placed(np.where(of_row[at] == prompts, owner[at], -1))


def _among(group: Array, request: Array, part: Array, slots: Array, where: str) -> Iterator[tuple[str, Array]]:
    """Yield the names that go by where a row stands in its group. Of each part of a request are given its group, the
    parts of one side by side and the least first, its request and its slot; of each row its part."""
    owner, row, number = request[part], np.arange(len(part)), np.arange(len(group))
    first, last = _ends(group[part])
    yield f"the first row {where}", owner[first]
    yield f"the last row {where}", owner[last]
    yield f"the row before {where}", owner[np.where(row > first, row - 1, last)]
    yield f"the row after {where}", owner[np.where(row < last, row + 1, first)]
    begins, ends = _ends(group)
    yield f"the request before {where}", request[np.where(number > begins, number - 1, ends)][part]
    yield f"the request after {where}", request[np.where(number < ends, number + 1, begins)][part]
    order = np.lexsort((row, slots[part], group[part]))  # in each group the base first, then slot by slot
    place = np.argsort(order)
    yield f"the row at its place if rows are sorted by adapter, {where}", owner[order]
    before, after = np.where(place > first, place - 1, last), np.where(place < last, place + 1, first)
    for which, beside in (("before", before), ("after", after)):
        yield f"the row {which} if rows are sorted by adapter, {where}", owner[order[beside]]
    for n in TILES:
        yield f"the first row of each {n} {where}", owner[first + (row - first) // n * n]
        yield f"the row at its place in the first {n} {where}", owner[first + (row - first) % n]
        tile = order[first + (place - first) // n * n]
        yield f"the first row of each {n} if rows are sorted by adapter, {where}", owner[tile]
    of_base = np.bincount(group[part], slots[part] < 0).astype(int)[group[part]]  # rows, before all others there
    for n in TILES:
        tile = first + of_base + (place - first - of_base) // n * n
        words = f"the first row of each {n} with adapters if these are sorted by adapter, {where}"
        yield words, np.where(slots[part] >= 0, owner[order[np.clip(tile, 0, len(row) - 1)]], -1)
    base_last = np.where(slots[part] >= 0, slots[part], 1 + slots.max())
    came = np.where(slots[part] >= 0, row, len(row))
    begins_at = np.unique(first)
    of_first = np.minimum.reduceat(came, begins_at)[np.searchsorted(begins_at, first)]
    yield f"the first adapter {where}", np.where(of_first < len(row), owner[np.minimum(of_first, len(row) - 1)], -1)
    for which, at in (("lowest", np.lexsort((row, base_last, group[part]))[first]), ("highest", order[last])):
        yield f"the adapter of the {which} slot {where}", np.where(slots[part][at] >= 0, owner[at], -1)


def _by_rest(requests: Batch, in_order: Sequence[Step]) -> Iterator[tuple[str, Array]]:
    """Yield which request each row would be of if the segments of a step's prompt tokens were as long as what is left
    of each prompt, or as all of it; -1: none. Decode rows are their own."""
    for words, is_rest in (("what is left of its prompt", True), ("its prompt", False)):
        owners = list[int]()
        for step in in_order:
            prompts = [one for one in step.rows if not one.is_decode]
            lengths = [requests[one.request].prompt - (one.first if is_rest else 0) for one in prompts]
            count = sum(one.length for one in prompts)
            wrong = [one.request for one, length in zip(prompts, lengths, strict=True) for _ in range(length)][:count]
            for one in step.rows:
                owners += [one.request] if one.is_decode else wrong[: one.length]
                wrong = wrong if one.is_decode else wrong[one.length :]
        yield f"the request that a row is of if each has as many in a step as {words} is long", np.array(owners)


def _by_length_of_others(requests: Batch, in_order: Sequence[Step], slots: Array) -> Iterator[tuple[str, Array]]:
    """Yield which request each row would be of if the segments of a step were as long as the one behind or before each
    is. slots: of each request in each step, -1: none."""
    for by_slot, order in ((False, ""), (True, ", in the order of slots")):
        for shift, which in ((-1, "behind"), (1, "before")):
            owners = list[int]()
            for step, of_step in zip(in_order, slots, strict=True):
                parts = list(range(len(step.rows)))
                parts = sorted(parts, key=lambda n: of_step[step.rows[n].request]) if by_slot else parts
                lengths = np.array([step.rows[n].length for n in parts])
                wrong = np.repeat([step.rows[n].request for n in parts], np.roll(lengths, shift))
                ends = dict(zip(parts, np.cumsum(lengths).tolist(), strict=True))
                for n, rows in enumerate(step.rows):
                    owners += wrong[ends[n] - rows.length : ends[n]].tolist()
            yield (
                f"the request that a row is of if each has as many in a step as the one {which} it{order}",
                np.array(owners),
            )


def _out_of_order(requests: Batch, in_order: Sequence[Step], codes: Mapping[str | None, int]) -> dict[str, Array]:
    """Return for each name what an adapter is taken for at each row, if the adapters of a step are counted as they come
    in one place and slot by slot in another."""
    results: dict[str, list[int]] = {f"the adapter that {one}": [] for one in COUNTED}
    for step in in_order:
        slots = {i: requests[i].slot_in(step.slots) for i in dict.fromkeys(one.request for one in step.rows)}
        as_they_come = list(dict.fromkeys(requests[i].called for i in slots if requests[i].adapters))
        of_slot = {requests[i].called: slot for i, slot in slots.items()}
        in_slots = sorted(as_they_come, key=lambda called: of_slot[called])
        for here, other, of in zip((in_slots, as_they_come), (as_they_come, in_slots), results.values(), strict=True):
            for one in step.rows:
                called = requests[one.request].called
                of += [codes[other[here.index(called)] if called is not None else None]] * one.length
    return {words: np.array(some) for words, some in results.items()}


def _ends(group: Array) -> tuple[Array, Array]:
    """Where the first and the last of each one's group are. group: numbers, the least first."""
    return np.searchsorted(group, group, "left"), np.searchsorted(group, group, "right") - 1


def _slots(requests: Batch, in_order: Sequence[Step]) -> Array:
    """Return the slot of each request in each step, -1: none. Where slots are not known adapters have them as they
    come."""
    keys = list(dict.fromkeys(one.adapters for one in requests if one.adapters))
    as_they_come = [keys.index(one.adapters) if one.adapters else -1 for one in requests]
    return np.array(
        [[one.slot_in(step.slots) for one in requests] if step.slots else as_they_come for step in in_order]
    )


def _in_slots(line: Line, number: int, in_order: Sequence[Step], step: Array, owner: Array) -> dict[str, Array]:
    """Return for each name which adapter of the slots it means at each row, 0: none. step, owner: of each row."""
    codes, requests, count = line.codes, line.batches[number], len(in_order[0].slots)
    names = [*(f"the adapter in slot {n}" for n in range(MOST_SLOTS)), "the adapter in the last slot"]
    names += [f"the adapter in the slot {which} its own" for which in ("before", "after")]
    names += ["the adapter that was in its slot before", "the adapter that is now in the slot that its own had"]
    if not count:
        return dict.fromkeys(names, np.zeros(len(owner), int))
    now = np.array([[codes[key] for key in one.slots] for one in in_order])
    former = np.array([[codes[of[0]] if of else 0 for of in one.former] for one in in_order])
    slots = np.array([[one.slot_in(some.slots) for one in requests] for some in in_order])[step, owner]
    of_row = [now[step, n] if n < count else np.zeros(len(owner), int) for n in range(MOST_SLOTS)] + [now[step, -1]]
    beside = [now[step, (slots - 1) % count], now[step, (slots + 1) % count], former[step, slots]]
    of_row += [np.where(slots >= 0, some, 0) for some in beside]
    places = np.array([one.places for one in in_order])[step, owner]
    of_row += [np.where(places >= 0, now[step, places], 0)]
    return dict(zip(names, of_row, strict=True))


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
