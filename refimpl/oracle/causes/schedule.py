"""In which step of an engine each token was computed, and with what: engines do not say, so several ways are tried.

    step 1   a: 8 of 12 prompt tokens    b: 5 of 5
    step 2   b: decode                   a: the other 4         decode steps come first, then prompts as they came
    step 3   b: decode                   a: decode              a step of decode steps alone

Continuous batching (Orca, OSDI 2022) with prompts in chunks (Sarathi-Serve, OSDI 2024; vLLM's max_num_batched_tokens).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array
from ..cases.case import Case, Exchange
from .regions import Region

CHUNKS = (None, 4, 8, 16)  # tokens of one prompt in a step, at most; None: all
BUDGETS = (None, 16, 24, 32, 64)  # tokens of a step, at most
TILES = (2, 4, 8, 16)  # rows of one adapter that a kernel takes together
REQUESTS = (2, 3, 4, 5, 6, 8)  # of a step
LIMIT = 1.5  # bits of a limit

Adapters = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Scheduled:
    """A request of a batch: its length, how many of its tokens are prompt, and its adapters with their weights."""

    tokens: int
    prompt: int
    adapters: Adapters


@dataclass(frozen=True)
class Rows:
    """Some tokens of one request in a step."""

    request: int
    first: int
    count: int
    is_decode: bool


def steps(requests: Sequence[Scheduled], chunk: int | None, budget: int | None) -> list[list[Rows]]:
    """Return the rows of each step, in their order, until every request has all of its tokens."""
    done, result = [0] * len(requests), list[list[Rows]]()
    while any(n < one.tokens for n, one in zip(done, requests, strict=True)):
        unfinished = [i for i, one in enumerate(requests) if done[i] < one.tokens]
        step, free = [], budget or sum(one.tokens for one in requests)
        for i in sorted(unfinished, key=lambda i: done[i] < requests[i].prompt):  # stable: decode steps come first
            one = requests[i]
            is_decode = done[i] >= one.prompt
            count = min(free, 1 if is_decode else min(one.prompt - done[i], chunk or one.prompt))
            if count:
                step.append(Rows(i, done[i], count, is_decode))
                free -= count
        for rows in step:
            done[rows.request] += rows.count
        result.append(step)
    return result


@dataclass(frozen=True, eq=False)
class InSteps:
    """What the steps of one request's tokens are, for each of them."""

    is_decode: Array
    has_prompt: Array  # does its step compute tokens of prompts?
    of_base_first: Array  # is the first row of its step one of the base?
    requests: Array  # of its step
    row: Array  # its place in the step
    rows: Array  # of the step
    place: Array  # among the rows of its own adapters in the step
    places: Array  # rows of its own adapters in the step
    chunk: Array  # the first token that is computed with it

    def regions(self) -> Iterator[Region]:
        """Yield the sets of tokens that these tell apart."""
        alone = ~self.has_prompt
        yield Region("steps without prompt tokens", alone, 3)
        yield Region("steps with prompt tokens", self.has_prompt, 3)
        yield Region("decode steps beside prompt tokens", self.is_decode & self.has_prompt, 3.5)
        for n in REQUESTS:
            yield Region(f"steps without prompt tokens, of {n} requests or more", alone & (self.requests >= n), 4)
            yield Region(f"steps without prompt tokens, of fewer than {n} requests", alone & (self.requests < n), 4)
        yield Region("steps whose first row is of the base", self.of_base_first, 3.5)
        yield Region("steps whose first row is of an adapter", ~self.of_base_first, 3.5)
        yield Region("the first row of a step", self.row == 0, 3)
        yield Region("every row of a step but the first", self.row > 0, 3)
        yield Region("the last row of a step", self.row == self.rows - 1, 3)
        yield Region("every row of a step but the last", self.row < self.rows - 1, 3)
        yield Region("the first row of its adapter in a step", self.place == 0, 3)
        yield Region("every row of its adapter in a step but the first", self.place > 0, 3)
        yield Region("the last row of its adapter in a step", self.place == self.places - 1, 3)
        yield Region("every row of its adapter in a step but the last", self.place < self.places - 1, 3)
        for n in TILES:
            beyond = self.place >= self.places - self.places % n
            yield Region(f"rows of its adapter in a step beyond the last whole {n}", beyond, 3.5)
            yield Region(f"rows of a step beyond the last whole {n}", self.row >= self.rows - self.rows % n, 3.5)
            yield Region(f"rows of a step from number {n} on", self.row >= n, 3.5)
            yield Region(f"rows of its adapter in a step from number {n} on", self.place >= n, 3.5)
        yield Region("the first part of a prompt", ~self.is_decode & (self.chunk == 0), 3)
        yield Region("every part of a prompt but the first", ~self.is_decode & (self.chunk > 0), 3)


def in_steps(requests: Sequence[Scheduled], here: int, in_order: Sequence[Sequence[Rows]]) -> InSteps:
    """Return what the steps of one request's tokens are. here: which of the requests it is."""
    columns: list[tuple[int, ...]] = [()] * requests[here].tokens
    own_adapters = requests[here].adapters
    for step in in_order:
        flat = [(rows, rows.first + j) for rows in step for j in range(rows.count)]
        places = [requests[rows.request].adapters == own_adapters for rows, _ in flat]
        has_prompt, of_base = any(not rows.is_decode for rows in step), not requests[step[0].request].adapters
        for row, (rows, t) in enumerate(flat):
            if rows.request == here:
                of_step = (rows.is_decode, has_prompt, of_base, len(step), row, len(flat))
                columns[t] = (*of_step, sum(places[:row]), sum(places), rows.first)
    decode, prompt, base, *numbers = np.array(columns, int).T
    return InSteps(decode == 1, prompt == 1, base == 1, *numbers)


def batch_of(case: Case, exchange: Exchange, batch: Sequence[Adapters]) -> list[Scheduled]:
    """Return what an exchange's batch asks for. batch: the adapters of each of its requests."""
    requests = case.runs[exchange.run].requests
    lengths = [len(one.prompt_ids) for one in requests]
    tokens = [n + one.max_new_tokens - 1 for n, one in zip(lengths, requests, strict=True)]
    tokens[exchange.index] = lengths[exchange.index] + max(len(exchange.response.token_ids) - 1, 0)
    return [Scheduled(*one) for one in zip(tokens, lengths, batch, strict=True)]


def scheduled_regions(requests: Sequence[Scheduled], here: int) -> list[Region]:
    """Return sets of one request's tokens by their steps, in each way to schedule. here: which one it is."""
    regions = list[Region]()
    for chunk, budget in itertools.product(CHUNKS, BUDGETS):
        limits = [f"{chunk} tokens of a prompt"] * (chunk is not None) + [f"{budget} tokens"] * (budget is not None)
        suffix = f" (if a step has at most {' and '.join(limits)})" if limits else ""
        for one in in_steps(requests, here, steps(requests, chunk, budget)).regions():
            regions.append(Region(one.words + suffix, one.members, one.cost + LIMIT * len(limits)))
    return regions
