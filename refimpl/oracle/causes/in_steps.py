"""What the steps are that compute the tokens of one request, and where its rows stand among others there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array
from .schedule import Adapters, Batch, Step


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
    cached: Array  # was it found in a cache?
    begins: Array  # does a request begin in this step?
    ended: Array  # did one end in the step before?


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
    slots_of = [[one.slot_in(step.slots) for one in requests] for step in in_order]
    parts_slot = np.array(slots_of)[of_step, request] if in_order[0].slots else None
    in_step = _among(keys, keys[here], of_step, request, part, own_rows, parts_slot)
    phase = np.unique(of_step * 2 + decode, return_inverse=True)[1]
    order = np.argsort(phase, kind="stable")  # parts of one phase side by side
    part_of = np.repeat(np.arange(len(parts)), count[order])
    in_phase = _among(
        keys,
        keys[here],
        phase[order],
        request[order],
        part_of,
        np.flatnonzero((request[order] == here)[part_of]),
        None if parts_slot is None else parts_slot[order],
    )
    chunk, step = first[part][own_rows], of_step[part][own_rows]
    own_key = requests[here].adapters[0][0] if requests[here].adapters else ""
    slots = [one.slots.index(own_key) if own_key in one.slots else -1 for one in in_order]
    had_others = [
        slot >= 0 and bool(set(one.history[slot]) - {own_key}) for slot, one in zip(slots, in_order, strict=True)
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
        np.array([one.is_cached for one in in_order])[step],
        *(some[step] for some in _begun_and_ended(requests, in_order)),
    )


def _begun_and_ended(requests: Batch, in_order: Sequence[Step]) -> tuple[Array, Array]:
    """Return of each step whether a request begins there, and whether one ended in the step before."""
    begins, ends, begun = [], [False], set[int]()
    for step in in_order:
        here = {one.request for one in step.rows}
        begins.append(not step.is_cached and not here <= begun)
        begun |= set() if step.is_cached else here
        is_end = any(one.first + one.length >= requests[one.request].tokens for one in step.rows)
        ends.append(ends[-1] if step.is_cached else is_end)
    return np.array(begins), np.array(ends[:-1])


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
