"""For which tokens, by the steps that compute them: the regions of a request that a bug may be confined to, where it is
one of an engine's batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ...arrays import Array
from .regions import Region
from .schedule import Adapters, Batch, Schedule, Step

TILES = (2, 4, 8, 16)  # rows that a kernel takes together
REQUESTS = (2, 3, 4, 5, 6, 8)  # of a step
FIRST = (1, 2, 3, 4)  # of them
ADAPTERS = (1, 2, 3, 4)  # of a step


@dataclass(frozen=True, eq=False)
class Among:
    """Where the rows of one request stand among others: those of their steps, or those of one phase in them."""

    row: Array  # its place
    rows: Array  # how many there are
    place: Array  # among those of its own adapters
    places: Array  # how many of its own adapters there are
    requests: Array  # how many requests have rows there
    adapters: Array  # of how many adapters they are
    of_base_first: Array  # is the first of them one of the base?
    number: Array  # how many adapters of theirs came before its own
    in_slots: Array  # of how many adapters the slots are before its own, the base's rows as if of one more
    before: Array  # how many requests come before it
    before_in_slots: Array  # the same if they stand in the order of their slots, the base's first


@dataclass(frozen=True, eq=False)
class InSteps:
    """What the steps of one request's tokens are, for each of them."""

    is_decode: Array
    has_prompt: Array  # does its step compute tokens of prompts?
    chunk: Array  # the first token that is computed with it
    chunk_end: Array  # the last one
    prompt: int
    of_step: Among
    of_phase: Among  # the step's prompt tokens, or its decode rows
    moved_in: Array  # did its adapter move into a slot in this step?
    slot: Array  # of its adapter, -1: none
    slots: int  # how many there are; 0: nobody knows
    was_used: Array  # was another adapter in it before?
    moves: Array  # how often its adapter has moved in so far

    def members(self) -> Array:
        """For which tokens each of regions_of_steps() holds, [regions, tokens]."""
        alone, index = ~self.has_prompt, np.arange(len(self.is_decode))
        in_prompt, later = ~self.is_decode, self.chunk > 0
        last_chunk = self.chunk_end == self.prompt - 1
        rows = [alone, self.has_prompt, self.is_decode & self.has_prompt, in_prompt & ~later, in_prompt & later]
        rows += [in_prompt & later & (index == self.chunk), in_prompt & (index == self.chunk_end)]
        rows += [in_prompt & ~last_chunk & (index == self.chunk_end), in_prompt & ~last_chunk]
        rows += [in_prompt & (index < self.chunk_end), in_prompt & (index > self.chunk)]
        in_slot, last = self.slot >= 0, self.slots - 1
        rows += [self.moved_in, in_slot & ~self.moved_in, self.was_used, in_slot & ~self.was_used]
        rows += [self.moves == 1, self.moves > 1, self.moves == 2, self.moves > 2]
        rows += [self.slot == 0, self.slot > 0, in_slot & (self.slot == last), in_slot & (self.slot < last)]
        everything = np.ones(len(index), bool)
        for among, of in ((self.of_step, everything), (self.of_phase, in_prompt), (self.of_phase, self.is_decode)):
            firsts, lasts = among.row == 0, among.row == among.rows - 1
            first_places, last_places = among.place == 0, among.place == among.places - 1
            some = [among.of_base_first, ~among.of_base_first, firsts, ~firsts, lasts, ~lasts]
            several = among.adapters > 1
            some += [first_places, ~first_places, last_places, ~last_places, several, ~several]
            some += [first_places & several, last_places & several]
            power = 1 << np.maximum(np.ceil(np.log2(among.rows + 1)).astype(int) - 1, 0)  # of two, the largest in it
            some += [among.row >= power]
            for n in ADAPTERS:
                some += [
                    among.number >= n,
                    (among.number >= 0) & (among.number < n),
                    among.in_slots >= n,
                    among.in_slots < n,
                ]
            for n in FIRST:
                some += [among.before >= n, among.before < n, among.before_in_slots >= n, among.before_in_slots < n]
            for n in TILES:
                tail, tail_of_own = (
                    among.row >= among.rows - among.rows % n,
                    among.place >= among.places - among.places % n,
                )
                some += [tail_of_own, tail, tail_of_own & (among.places > n), tail & (among.rows > n)]
                some += [among.row >= n, among.place >= n]
            for n in REQUESTS:
                some += [among.requests >= n, among.requests < n]
            rows += [one & of for one in some]
        return np.array(rows)


@lru_cache
def regions_of_steps() -> list[tuple[str, float]]:
    """The words and the bits of each of InSteps.members()."""
    regions = [
        ("steps without prompt tokens", 3.0),
        ("steps with prompt tokens", 3.0),
        ("decode steps beside prompt tokens", 3.5),
        ("the first part of a prompt", 3.0),
        ("every part of a prompt but the first", 3.0),
        ("the first token of each part of a prompt but the first", 3.0),
        ("the last token of each part of a prompt", 3.0),
        ("the last token of each part of a prompt but the last", 3.0),
        ("every part of a prompt but the last", 3.0),
        ("all tokens of each part of a prompt but its last", 3.0),
        ("all tokens of each part of a prompt but its first", 3.0),
        ("the step in which its adapter moves into a slot", 3.0),
        ("steps before which its adapter moved into a slot", 3.0),
        ("an adapter in a slot that another one had before", 3.0),
        ("an adapter in a slot that no other one had before", 3.0),
        ("an adapter that is in a slot for the first time", 3.0),
        ("an adapter that moved into a slot again", 3.0),
        ("an adapter that is in a slot for the second time", 3.5),
        ("an adapter that is in a slot for the third time or more", 3.5),
        ("an adapter in the first slot", 3.5),
        ("an adapter in a slot but the first", 3.5),
        ("an adapter in the last slot", 3.5),
        ("an adapter in a slot but the last", 3.5),
    ]
    for one, bits in (("row of a step", 3.0), ("prompt token of a step", 3.5), ("decode row of a step", 3.5)):
        what, _, step = one.partition(" of ")
        some = f"{what}s of {step}"
        of_own = f"of its adapter's {some}"
        regions += [
            (f"{some}, the first of which is of the base", bits + 0.5),
            (f"{some}, the first of which is of an adapter", bits + 0.5),
            (f"the first {one}", bits),
            (f"every {one} but the first", bits),
            (f"the last {one}", bits),
            (f"every {one} but the last", bits),
            (f"the first {of_own}", bits),
            (f"all {of_own} but the first", bits),
            (f"the last {of_own}", bits),
            (f"all {of_own} but the last", bits),
            (f"{some}, which are of two adapters or more", bits + 0.5),
            (f"{some}, which are of one adapter at most", bits + 0.5),
            (f"the first {of_own}, which are of two adapters or more", bits + 1),
            (f"the last {of_own}, which are of two adapters or more", bits + 1),
            (f"{some} beyond the largest power of two", bits + 1),
        ]
        for n in ADAPTERS:
            regions += [
                (f"{some} whose adapter is number {n + 1} or later to come there", bits + 1),
                (f"{some} whose adapter is before number {n + 1} to come there", bits + 1),
                (f"{some} of all slots there but the first {n}, of which the base's rows count as one", bits + 1),
                (f"{some} of the first {n} slots there, of which the base's rows count as one", bits + 1),
            ]
        for n in FIRST:
            first = "the first request" if n == 1 else f"the first {n} requests"
            regions += [
                (f"{some} of all requests there but {first}", bits + 0.5),
                (f"{some} of {first} there", bits + 0.5),
                (f"{some} of all requests there but {first}, in the order of their slots", bits + 1.5),
                (f"{some} of {first} there, in the order of their slots", bits + 1.5),
            ]
        for n in TILES:
            regions += [
                (f"those {of_own} beyond the last whole {n}", bits + 0.5),
                (f"{some} beyond the last whole {n}", bits + 0.5),
                (f"those {of_own} beyond the last whole {n}, of more than {n}", bits + 1),
                (f"{some} beyond the last whole {n}, of more than {n}", bits + 1),
                (f"{some} from number {n} on", bits + 0.5),
                (f"those {of_own} from number {n} on", bits + 0.5),
            ]
        for n in REQUESTS:
            regions += [
                (f"{some}, which are of {n} requests or more", bits + 1),
                (f"{some}, which are of fewer than {n} requests", bits + 1),
            ]
    return regions


def in_steps(requests: Batch, here: int, in_order: Sequence[Step]) -> InSteps:
    """Return what the steps of one request's tokens are. here: which of the requests it is."""
    parts = [
        (number, rows.request, rows.first, rows.length, rows.is_decode)
        for number, step in enumerate(in_order)
        for rows in step.rows
    ]
    of_step, request, first, count, decode = np.array(parts, int).T
    part = np.repeat(np.arange(len(parts)), count)  # of each row
    own_rows = np.flatnonzero((request == here)[part])
    keys = [one.adapters for one in requests]
    has_prompt = np.zeros(len(in_order), bool)
    np.logical_or.at(has_prompt, of_step, decode == 0)
    phase = np.cumsum(np.diff(of_step * 2 + decode, prepend=-1) != 0) - 1
    slots_of = [[one.slot_in(step.slots) for one in requests] for step in in_order]
    parts_slot = np.array(slots_of)[of_step, request] if in_order[0].slots else None
    in_step, in_phase = (
        _among(keys, keys[here], group, request, part, own_rows, parts_slot) for group in (of_step, phase)
    )
    chunk, step = first[part][own_rows], of_step[part][own_rows]
    own_key = requests[here].adapters[0][0] if requests[here].adapters else ""
    slots = [one.slots.index(own_key) if own_key in one.slots else -1 for one in in_order]
    had_others = [
        slot >= 0 and bool(set(one.former[slot]) - {own_key}) for slot, one in zip(slots, in_order, strict=True)
    ]
    return InSteps(
        decode[part][own_rows] == 1,
        has_prompt[step],
        chunk,
        chunk + count[part][own_rows] - 1,
        requests[here].prompt,
        in_step,
        in_phase,
        np.array([own_key in one.loaded for one in in_order])[step],
        np.array(slots)[step],
        len(in_order[0].slots),
        np.array(had_others)[step],
        np.array([one.moves[slot] if slot >= 0 else 0 for slot, one in zip(slots, in_order, strict=True)])[step],
    )


def _among(
    keys: Sequence[Adapters],
    own_key: Adapters,
    group: Array,
    request: Array,
    part: Array,
    own_rows: Array,
    slots: Array | None,
) -> Among:
    """group: of each part of a request in a step, in order; part: of each row; own_rows: which are asked for. slots: of
    each part of a request; None: nobody knows, and adapters have them as they come."""
    of_row = group[part]
    starts = np.searchsorted(of_row, np.arange(group[-1] + 1))
    own_names = {name for name, _ in own_key}
    shares = [
        key == own_key or bool(own_names & {name for name, _ in key}) for key in keys
    ]  # a sum has rows of several
    is_own = np.array(shares)[request][part]
    before = np.cumsum(is_own) - is_own
    number = {key: n for n, key in enumerate(dict.fromkeys(key for key in keys if key))}
    adapter = np.array([number.get(key, -1) for key in keys])[request]
    used = np.zeros((group[-1] + 1, len(number) + 1), bool)
    used[group, adapter] = True
    here = of_row[own_rows]
    come = _numbers(group, adapter, as_they_come=True)
    of_slot = adapter if slots is None else slots
    in_slots = _numbers(group, of_slot, as_they_come=False)
    requests_in_slots = _numbers(group, (of_slot + 1) * len(keys) + request, as_they_come=False)
    return Among(
        own_rows - starts[here],
        np.bincount(of_row)[here],
        before[own_rows] - before[starts[here]],
        np.bincount(of_row, is_own).astype(int)[here],
        np.bincount(group)[here],
        used[:, : len(number)].sum(axis=1)[here],
        np.array([not key for key in keys])[request][part][starts[here]],
        come[part[own_rows]],
        in_slots[part[own_rows]],
        _numbers(group, request, as_they_come=True)[part[own_rows]],
        requests_in_slots[part[own_rows]],
    )


def _numbers(group: Array, value: Array, as_they_come: bool) -> Array:
    """Return how many other values of its group stand before each one's: as they come, -1 not counted, or in order."""
    width = value.max() + 2
    keys, first, of_each = np.unique(group * width + value + 1, return_index=True, return_inverse=True)
    counted = keys % width > 0 if as_they_come else np.ones(len(keys), bool)
    order = np.argsort(first[counted]) if as_they_come else np.arange(len(keys))
    groups = (keys[counted] // width)[order]
    number = np.full(len(keys), -1)
    number[np.flatnonzero(counted)[order]] = np.arange(len(groups)) - np.searchsorted(groups, groups)
    return number[of_each]


def regions_in_steps(requests: Batch, here: int, schedule: Schedule, in_order: Sequence[Step]) -> Iterator[Region]:
    """Yield sets of one request's tokens by their steps. here: which one it is. schedule: that makes these steps; what
    it takes to say it is not counted."""
    members = in_steps(requests, here, in_order).members()
    for (words, cost), tokens in zip(regions_of_steps(), members, strict=True):
        yield Region(words, tokens, cost, schedule.words)
