"""In which step of an engine each token was computed, and with what: engines do not say, so it is worked out.

    step 1   a: 8 of 12 prompt tokens    b: 5 of 5            slots: a b
    step 2   b: decode                   a: the other 4       decode steps come first, then prompts as they came
    step 3   b: decode                   a: decode            a step of decode steps alone

Continuous batching (Orca, OSDI 2022) with prompts in chunks (Sarathi-Serve, OSDI 2024; vLLM's max_num_batched_tokens),
slots for the adapters of the requests that run (slots.py), and blocks of tokens that are not computed again (vLLM's
prefix cache): a request's first tokens, if it finds them, are shown here as a step of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .schedule import Adapters, Batch, Rows, Schedule, Step
from .slots import Slots


@dataclass(eq=False)
class Caches:
    """What an engine keeps from batch to batch."""

    slots: Slots | None = None  # None: nothing is known of them
    blocks: set[tuple[Adapters, tuple[int, ...]]] = field(default_factory=set)  # with all that is before them

    @classmethod
    def of(cls, schedule: Schedule) -> "Caches":
        """Return empty ones."""
        return cls(Slots(schedule.adapters) if schedule.adapters else None)


def steps(requests: Batch, schedule: Schedule, caches: Caches | None = None) -> list[Step]:
    """Return the rows of each step, in their order, until every request has all of its tokens. caches: as the batch
    finds them; they are changed. None: empty ones, and nothing is known of slots."""
    engine, result = _Engine(requests, schedule, caches or Caches()), list[Step]()
    while engine.coming or engine.waiting or engine.running:
        result += engine.step()
    return result


@dataclass(eq=False)
class _Engine:
    """An engine while it serves a batch."""

    requests: Batch
    schedule: Schedule
    caches: Caches

    def __post_init__(self) -> None:
        count = len(self.requests)
        self.done, self.places = [0] * count, [-1] * count  # tokens; the slot that each request's adapter got
        self.coming = sorted(range(count), key=lambda i: (self.requests[i].arrival, self._turn(i)))
        self.waiting, self.running, self.ended = list[int](), list[int](), list[int]()
        self.begun = list[int]()  # all that have run, as they came
        self.loaded, self.cached = list[str](), list[Rows]()  # in this step
        self.count = 0  # of steps
        self.no_limit = sum(one.tokens for one in self.requests)

    def _turn(self, i: int) -> int:
        """Return what a request is sorted by, of those that come at once."""
        order, prompt = self.schedule.order, self.requests[i].prompt
        if order in ("adapters", "base"):
            called = list(dict.fromkeys(one.called for one in self.requests))
            return -1 if order == "base" and not self.requests[i].adapters else called.index(self.requests[i].called)
        return {"longest": -prompt, "shortest": prompt}.get(order, 0)

    def step(self) -> list[Step]:
        """Return what is computed next, after what was cached."""
        self.loaded, self.cached = [], []
        while self.coming and (self.requests[self.coming[0]].arrival <= self.count or not self._is_busy):
            self.waiting.append(self.coming.pop(0))
        rows = self._ordered(self._rows())
        self.count += 1
        for one in rows:
            self.done[one.request] += one.length
        prompts = [one.request for one in rows if not one.is_decode]
        self.ended += [i for i in prompts if self.done[i] >= self.requests[i].prompt]
        self._keep(rows)
        ends = [self.done[i] >= request.tokens for i, request in enumerate(self.requests)]
        if self.schedule.at_end and self.caches.slots:
            for key in [key for i in self.running if ends[i] for key, _ in self.requests[i].adapters]:
                self.caches.slots.touch(key)
        go_on = [i for i in self.running if not ends[i]]
        self.running = compacted_places(self.running, ends) if self.schedule.compacts else go_on
        return [self._noted([one], is_cached=True) for one in self.cached] + [self._noted(rows)] * bool(rows)

    @property
    def _is_busy(self) -> bool:
        return bool(self.waiting or self.running)

    def _rows(self) -> list[Rows]:
        """Return the rows of a step, decode steps first."""
        schedule, requests, done = self.schedule, self.requests, self.done
        one_by_one = schedule.if_room and not schedule.prompts_first
        if not one_by_one:
            self._admit()
        prompts = [i for i in self.running if done[i] < requests[i].prompt]
        prompts = sorted(prompts, key=self.begun.index) if schedule.by_row else prompts
        order = self.ended if schedule.by_end else self.running
        decodes = [i for i in order if i in self.running and i not in prompts]
        decodes = [] if prompts and schedule.prompts_first else decodes
        rows, free = [Rows(i, done[i], 1, True) for i in decodes], schedule.budget or self.no_limit
        if schedule.in_turn and not schedule.prompts_first:
            rows, prompts = self._in_turn(free), []
            free -= sum(one.length for one in rows)
        elif schedule.counts_decodes:
            rows, free = rows[:free], free - len(rows[:free])
        while prompts or (one_by_one and free):
            if not prompts:  # those that run have what they need: one more, while there is room
                self._admit(1)
                have = {one.request for one in rows}
                prompts = [i for i in self.running if done[i] < requests[i].prompt and i not in have]
                if not prompts:
                    break
            i = prompts.pop(0)
            remaining = requests[i].prompt - done[i]
            length = min(free, remaining, schedule.chunk or remaining)
            if length:
                rows.append(Rows(i, done[i], length, False))
                free -= length
        return rows

    def _in_turn(self, free: int) -> list[Rows]:
        """Return the rows of a step in which each request takes what is left of the budget, one after another."""
        rows = []
        for i in self.running:
            remaining = self.requests[i].prompt - self.done[i]
            length = min(free, 1 if remaining <= 0 else min(remaining, self.schedule.chunk or remaining))
            if length:
                rows.append(Rows(i, self.done[i], length, remaining <= 0))
                free -= length
        return rows

    def _ordered(self, rows: list[Rows]) -> list[Rows]:
        slots = self.caches.slots
        if self.schedule.prompts_ahead:
            rows.sort(key=lambda one: one.is_decode)
        if self.schedule.by_row:
            rows.sort(key=lambda one: self.running.index(one.request))
        if self.schedule.by_slot and slots:
            rows.sort(key=lambda one: slots.numbers_of(key for key, _ in self.requests[one.request].adapters))
        return rows

    def _admit(self, most: int | None = None) -> None:
        """Move requests, `most` of them if it is given, from those that wait to those that run, in their order, as far
        as the limits allow it."""
        schedule, requests, slots = self.schedule, self.requests, self.caches.slots
        if schedule.to_the_end and self.running:
            return
        most = min(schedule.running or len(requests), len(self.running) + (most or len(requests)))
        of_adapters = schedule.adapters
        used = set() if schedule.one_step else {key for i in self.running for key, _ in requests[i].adapters}
        for i in list(self.waiting):
            here = used | {key for key, _ in requests[i].adapters}
            if len(self.running) == most:
                break
            has_room = not of_adapters or len(here) <= of_adapters or schedule.evicts
            if self.running and not has_room:  # one alone runs, whatever it needs
                if schedule.overtake:
                    continue
                break
            self.waiting.remove(i)
            self.running.append(i)
            self.begun.append(i)
            used = here
            for key, _ in requests[i].adapters if slots else ():
                self.loaded += [key] * (slots is not None and slots.move_in(key, set() if schedule.evicts else used))
            if slots:
                self.places[i] = requests[i].slot_in(slots.keys)
            self._find(i)

    def _find(self, i: int) -> None:
        """Leave out the first tokens of a request that are cached; the last one of a prompt is computed anyhow."""
        request, block = self.requests[i], self.schedule.block
        while block and self.done[i] + block < request.prompt:
            if (request.adapters, request.ids[: self.done[i] + block]) not in self.caches.blocks:
                break
            self.done[i] += block
        if self.done[i]:
            self.cached.append(Rows(i, 0, self.done[i], False))

    def _keep(self, rows: Sequence[Rows]) -> None:
        """Note what this step has used, and what it has computed."""
        slots, block = self.caches.slots, self.schedule.block
        for one in rows:
            request = self.requests[one.request]
            if slots and self.schedule.touches:
                for key, _ in request.adapters:
                    slots.touch(key)
            for n in range(block, one.first + one.length + 1, block) if block and request.ids else ():
                self.caches.blocks.add((request.adapters, request.ids[:n]))

    def _noted(self, rows: Sequence[Rows], is_cached: bool = False) -> Step:
        slots = self.caches.slots
        if slots is None:
            return Step(tuple(rows), is_cached=is_cached)
        loaded = () if is_cached else tuple(self.loaded)
        moves = tuple(slots.moves[key] for key in slots.keys)
        return Step(tuple(rows), tuple(slots.keys), tuple(slots.history), loaded, moves, tuple(self.places), is_cached)


def compacted_places(running: Sequence[int], ends: Sequence[bool]) -> list[int]:
    """Return those that go on: the last one takes the place of one that ends, and may end itself."""
    return moved_places(running, ends)[0]


def moved_places(running: Sequence[int], ends: Sequence[bool]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the same, and which place was taken from which, one after another."""
    places, moves, at = list(running), list[tuple[int, int]](), 0
    while at < len(places):
        if not ends[places[at]]:
            at += 1
            continue
        last = places.pop()
        if at < len(places):
            places[at] = last
            moves.append((at, len(places)))
    return places, moves
