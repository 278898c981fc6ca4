"""In which step of an engine each token was computed, and with what: engines do not say, so it is worked out.

    step 1   a: 8 of 12 prompt tokens    b: 5 of 5            slots: a b
    step 2   b: decode                   a: the other 4       decode steps come first, then prompts as they came
    step 3   b: decode                   a: decode            a step of decode steps alone

Continuous batching (Orca, OSDI 2022) with prompts in chunks (Sarathi-Serve, OSDI 2024; vLLM's max_num_batched_tokens),
and slots for the adapters of the requests that run: a free one, or that of the adapter that was used least recently
(vLLM's LRU cache, lora/model_manager.py). An engine's own limits are unknown; which schedule fits what was seen is
looked for in schedule_search.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .relations import label

LIMITS = {0: 1.0, 1: 1.5, 2: 2.5}  # bits of a limit that is a power of two, another multiple of 4, any other

Adapters = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Schedule:
    """How an engine puts steps together. None: there is no such limit."""

    chunk: int | None = None  # tokens of one prompt in a step, at most
    budget: int | None = None  # tokens of a step, at most
    counts_decodes: bool = True  # against the budget
    prompts_first: bool = False  # is no decode step done while prompts wait? (vLLM's first scheduler)
    running: int | None = None  # requests at once, at most; the others wait (vLLM's max_num_seqs)
    adapters: int | None = None  # slots: of so many adapters requests run at once (vLLM's max_loras)
    evicts: bool = False  # does an adapter get a slot at once, although a running request uses it?
    one_step: bool = False  # is a slot kept for a request in the first of its steps alone?
    overtake: bool = False  # does a request whose adapter is there run before one that waits for its adapter?
    touches: bool = False  # is an adapter used anew in each step that has rows of it? Else where its request begins
    if_room: bool = False  # does a request begin only in a step that has room for its tokens, so not before?
    prompts_ahead: bool = False  # do the rows of prompts stand before those of decode steps?
    in_turn: bool = False  # do requests get tokens and rows in the order in which they run? (vLLM's V1 scheduler)
    compacts: bool = False  # does the last of those that run take the place of one that ends?
    by_end: bool = False  # do decode steps stand in the order in which their prompts ended? Else as they came.

    @property
    def words(self) -> str:
        """What is assumed; "" if nothing."""
        tokens = "tokens" if self.counts_decodes else "prompt tokens"
        limits = [f"{self.chunk} tokens of a prompt"] * (self.chunk is not None)
        limits += [f"{self.budget} {tokens}"] * (self.budget is not None)
        parts = [f"a step has at most {' and '.join(limits)}"] * bool(limits)
        limits = [f"{self.running} requests"] * (self.running is not None)
        limits += [f"{self.adapters} adapters"] * (self.adapters is not None and not (self.evicts or self.one_step))
        parts += [f"at most {' and '.join(limits)} run at once"] * bool(limits)
        parts += [f"it has {self.adapters} slots, from which adapters in use are thrown out"] * self.evicts
        parts += [f"it has {self.adapters} slots, each kept for a request in its first step alone"] * self.one_step
        parts += ["prompts have steps of their own, before decode steps"] * self.prompts_first
        return f"(if {', and '.join(parts)})" if parts else ""

    @property
    def cost(self) -> float:
        """Bits, about."""
        limits = [n for n in (self.chunk, self.budget, self.running, self.adapters) if n is not None]
        kinds = [
            self.budget is not None and not self.counts_decodes,
            self.prompts_first,
            self.evicts,
            self.one_step,
            self.touches,
            self.in_turn,
            self.overtake,
            self.if_room,
            self.compacts,
            self.by_end,
        ]
        return sum(LIMITS[0 if n & (n - 1) == 0 else 1 if n % 4 == 0 else 2] for n in limits) + 0.5 * sum(kinds)


@dataclass(frozen=True)
class Scheduled:
    """A request of a batch: its length, how many of its tokens are prompt, and its adapters with their weights."""

    tokens: int
    prompt: int
    adapters: Adapters

    @property
    def called(self) -> str | None:
        """What its adapters are called."""
        return label(self.adapters)

    def slot_in(self, slots: Sequence[str | None]) -> int:
        """Return the slot of its adapter, of a sum of the first; -1: it has none there."""
        key = self.adapters[0][0] if self.adapters else None
        return slots.index(key) if key is not None and key in slots else -1


Batch = Sequence[Scheduled]


class Rows(NamedTuple):
    """Some tokens of one request in a step."""

    request: int
    first: int
    length: int
    is_decode: bool


class Step(NamedTuple):
    """What an engine computes at once, in its order."""

    rows: tuple[Rows, ...]
    slots: tuple[str | None, ...] = ()  # which adapter is in each; none if the schedule says nothing of slots
    former: tuple[tuple[str, ...], ...] = ()  # which ones were there before that, the latest first
    loaded: tuple[str, ...] = ()  # adapters that moved in when the step began
    moves: tuple[int, ...] = ()  # how often the adapter of each slot has moved in so far
    places: tuple[int, ...] = ()  # the slot that each request's adapter got, -1: none


@dataclass(eq=False)
class Slots:
    """Where adapters are on the device, from batch to batch."""

    count: int
    keys: list[str | None] = field(default_factory=list)
    former: list[tuple[str, ...]] = field(default_factory=list)  # which ones were there before, the latest first
    order: list[int] = field(default_factory=list)  # the one that was used least recently first
    moves: Counter[str | None] = field(default_factory=Counter)  # of each adapter, how often it moved in

    def __post_init__(self) -> None:
        self.keys, self.former = [None] * self.count, [()] * self.count
        self.order = list(range(self.count))

    def move_in(self, key: str, in_use: set[str]) -> bool:
        """Use an adapter: give it a slot of none in use, unless it has one. Did it move in?"""
        if key in self.keys:
            slot, moved = self.keys.index(key), False
        else:
            slot, moved = next((one for one in self.order if self.keys[one] not in in_use), self.order[0]), True
            former = self.keys[slot]
            if former is not None:
                self.former[slot] = (former, *(one for one in self.former[slot] if one != former))
            self.keys[slot] = key
            self.moves[key] += 1
        self._touch(slot)
        return moved

    def touch(self, key: str) -> None:
        """Take an adapter for the one that was used last, if it has a slot."""
        if key in self.keys:
            self._touch(self.keys.index(key))

    def _touch(self, slot: int) -> None:
        self.order.remove(slot)
        self.order.append(slot)


def steps(requests: Batch, schedule: Schedule, slots: Slots | None = None) -> list[Step]:
    """Return the rows of each step, in their order, until every request has all of its tokens. slots: as the batch
    finds them; they are changed."""
    done, result = [0] * len(requests), list[Step]()
    no_limit = sum(one.tokens for one in requests)
    waiting, running, ended = list(range(len(requests))), list[int](), list[int]()
    places = [-1] * len(requests)
    while waiting or running:
        one_by_one = schedule.if_room and not schedule.prompts_first
        loaded = [] if one_by_one else _admit(requests, schedule, waiting, running, places, slots)
        prompts = [i for i in running if done[i] < requests[i].prompt]
        decodes = [i for i in (ended if schedule.by_end else running) if i in running and i not in prompts]
        decodes = [] if prompts and schedule.prompts_first else decodes
        rows, free = [Rows(i, done[i], 1, True) for i in decodes], schedule.budget or no_limit
        if schedule.in_turn and not schedule.prompts_first:
            rows, prompts = _in_turn(requests, running, done, free, schedule.chunk), []
            free -= sum(one.length for one in rows)
        elif schedule.counts_decodes:
            rows, free = rows[:free], free - len(rows[:free])
        while prompts or (one_by_one and free):
            if not prompts:  # those that run have what they need: one more, while there is room
                loaded += _admit(requests, schedule, waiting, running, places, slots, 1)
                prompts = [
                    i for i in running if done[i] < requests[i].prompt and i not in {one.request for one in rows}
                ]
                if not prompts:
                    break
            i = prompts.pop(0)
            remaining = requests[i].prompt - done[i]
            length = min(free, remaining, schedule.chunk or remaining)
            if length:
                rows.append(Rows(i, done[i], length, False))
                free -= length
        if schedule.prompts_ahead:
            rows.sort(key=lambda one: one.is_decode)
        for one in rows:
            done[one.request] += one.length
        ended += [
            one.request for one in rows if not one.is_decode and done[one.request] >= requests[one.request].prompt
        ]
        if slots and schedule.touches:
            for key in (key for one in rows for key, _ in requests[one.request].adapters):
                slots.touch(key)
        ends = [done[i] >= request.tokens for i, request in enumerate(requests)]
        running = compacted_places(running, ends) if schedule.compacts else [i for i in running if not ends[i]]
        if slots:
            moves = tuple(slots.moves[key] for key in slots.keys)
            of_slots = tuple(slots.keys), tuple(slots.former), tuple(loaded), moves, tuple(places)
            result.append(Step(tuple(rows), *of_slots))
        else:
            result.append(Step(tuple(rows)))
    return result


def _in_turn(requests: Batch, running: Sequence[int], done: Sequence[int], free: int, chunk: int | None) -> list[Rows]:
    """Return the rows of a step in which each request takes what is left of the budget, one after another."""
    rows = []
    for i in running:
        remaining = requests[i].prompt - done[i]
        length = min(free, 1 if remaining <= 0 else min(remaining, chunk or remaining))
        if length:
            rows.append(Rows(i, done[i], length, remaining <= 0))
            free -= length
    return rows


def compacted_places(running: Sequence[int], ends: Sequence[bool]) -> list[int]:
    """Return those that go on: the last one takes the place of one that ends, and may end itself."""
    places, at = list(running), 0
    while at < len(places):
        if not ends[places[at]]:
            at += 1
            continue
        last = places.pop()
        if at < len(places):
            places[at] = last
    return places


def _admit(
    requests: Batch,
    schedule: Schedule,
    waiting: list[int],
    running: list[int],
    places: list[int],
    slots: Slots | None,
    most: int | None = None,
) -> list[str]:
    """Move requests, `most` of them if it is given, from those that wait to those that run, in their order, as far as
    the limits allow it. Return the adapters that moved into a slot."""
    most = min(schedule.running or len(requests), len(running) + (most or len(requests)))
    of_adapters, loaded = schedule.adapters, list[str]()
    used = set() if schedule.one_step else {key for i in running for key, _ in requests[i].adapters}
    for i in list(waiting):
        here = used | {key for key, _ in requests[i].adapters}
        if len(running) == most:
            break
        has_room = not of_adapters or len(here) <= of_adapters or schedule.evicts
        if running and not has_room:  # one alone runs, whatever it needs
            if schedule.overtake:
                continue
            break
        waiting.remove(i)
        running.append(i)
        used = here
        for key, _ in requests[i].adapters if slots else ():
            loaded += [key] * (slots is not None and slots.move_in(key, set() if schedule.evicts else used))
        if slots:
            places[i] = requests[i].slot_in(slots.keys)
    return loaded
