"""How an engine puts steps together, and what comes of it: pure data. steps.py works the steps out; which schedule an
engine has nobody says, so the one that fits what was seen is looked for (schedule_search.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from ...engines.interface import Computed, Settings
from .relations import label

ORDERS = {
    "": "as they come",
    "longest": "the longest prompt first",
    "shortest": "the shortest prompt first",
    "adapters": "adapter by adapter, as these come",
    "base": "adapter by adapter, the base's first",
}
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
    to_the_end: bool = False  # do these run to their ends before others begin? (static batching)
    order: str = ""  # of ORDERS: which of the requests that come at once begin first
    adapters: int | None = None  # slots: of so many adapters requests run at once (vLLM's max_loras)
    evicts: bool = False  # does an adapter get a slot at once, although a running request uses it?
    as_started: bool = False  # are its slots, and the tokens of a step, as many as it was started with?
    block: int | None = None  # tokens of a block of its prefix cache, if it has one
    at_load: bool = False  # does an adapter move into a slot when it is loaded? Else when a request of it begins
    one_step: bool = False  # is a slot kept for a request in the first of its steps alone?
    overtake: bool = False  # does a request whose adapter is there run before one that waits for its adapter?
    touches: bool = False  # is an adapter used anew in each step that has rows of it? Else where its request begins
    at_end: bool = False  # is an adapter used anew where a request of it ends?
    if_room: bool = False  # does a request begin only in a step that has room for its tokens, so not before?
    prompts_ahead: bool = False  # do the rows of prompts stand before those of decode steps?
    in_turn: bool = False  # do requests get tokens and rows in the order in which they run? (vLLM's V1 scheduler)
    by_row: bool = False  # do rows stand in the order in which requests run, whoever gets tokens first?
    by_slot: bool = False  # do rows stand in the order of their adapters' slots, the base's first?
    compacts: bool = False  # does the last of those that run take the place of one that ends?
    by_end: bool = False  # do decode steps stand in the order in which their prompts ended? Else as they came.

    @property
    def words(self) -> str:
        """What is assumed; "" if nothing."""
        tokens = "tokens" if self.counts_decodes else "prompt tokens"
        limits = [f"{self.chunk} tokens of a prompt"] * (self.chunk is not None)
        limits += [f"{self.budget} {tokens}"] * (self.budget is not None)
        parts = [f"requests begin {ORDERS[self.order]}"] * bool(self.order)
        parts += [f"a step has at most {' and '.join(limits)}"] * bool(limits)
        limits = [f"{self.running} requests"] * (self.running is not None)
        limits += [f"{self.adapters} adapters"] * (self.adapters is not None and not (self.evicts or self.one_step))
        ends = ", to their ends before others begin" * self.to_the_end
        parts += [f"at most {' and '.join(limits)} run at once{ends}"] * bool(limits)
        parts += [f"it has {self.adapters} slots, from which adapters in use are thrown out"] * self.evicts
        parts += [f"it has {self.adapters} slots, each kept for a request in its first step alone"] * self.one_step
        parts += ["it keeps to the limits that it was started with"] * self.as_started
        parts += ["rows stand in the order of slots"] * self.by_slot
        parts += ["rows stand in the order in which requests run"] * self.by_row
        parts += [f"it does not compute again whole {self.block}s of tokens that it had"] * (self.block is not None)
        parts += ["prompts have steps of their own, before decode steps"] * self.prompts_first
        return f"(if {', and '.join(parts)})" if parts else ""

    @property
    def cost(self) -> float:
        """Bits, about."""
        limits = [n for n in (self.chunk, self.budget, self.running, self.adapters, self.block) if n is not None]
        kinds = [
            self.budget is not None and not self.counts_decodes,
            self.prompts_first,
            self.as_started,
            self.at_load,
            self.by_slot,
            self.evicts,
            self.one_step,
            self.touches,
            self.at_end,
            self.by_row,
            self.in_turn,
            self.overtake,
            self.if_room,
            self.compacts,
            self.by_end,
        ]
        rare = [bool(self.order), self.to_the_end]
        return (
            sum(LIMITS[0 if n & (n - 1) == 0 else 1 if n % 4 == 0 else 2] for n in limits)
            + 0.5 * sum(kinds)
            + 1.5 * sum(rare)
        )

    def within(self, started: Settings | None) -> "Schedule":
        """Return it with the limits of an engine that was started like this, if it keeps to those."""
        if started is None or not self.as_started:
            return self
        block = self.block if started.prefix_caching else None
        adapters, budget = started.max_adapters, started.chunk or self.budget
        return replace(self, adapters=adapters, running=started.max_requests, budget=budget, block=block)


@dataclass(frozen=True)
class Scheduled:
    """A request of a batch: its length, how many of its tokens are prompt, and its adapters with their weights."""

    tokens: int
    prompt: int
    adapters: Adapters
    ids: tuple[int, ...] = ()  # of its tokens, where prefixes may come again
    arrival: int = 0  # steps of the batch before it comes
    computed: tuple[Computed, ...] = ()  # where it was computed, if the engine tells that

    @cached_property
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
    history: tuple[tuple[str, ...], ...] = ()  # all that moved into each so far, one after another
    loaded: tuple[str, ...] = ()  # adapters that moved in when the step began
    moves: tuple[int, ...] = ()  # how often the adapter of each slot has moved in so far
    places: tuple[int, ...] = ()  # the slot that each request's adapter got, -1: none
    is_cached: bool = False  # its tokens were not computed, but found
