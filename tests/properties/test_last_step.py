"""`engine.last_step` against a count of its own: budget, order, prefix hits, preemption, adapter slots, and an end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.adapter import Adapter, PeftConfig
from refimpl.config import ModelConfig
from refimpl.engine import Engine
from refimpl.policies import admit
from refimpl.request import Request
from refimpl.synthetic.adapters import random_adapter
from refimpl.synthetic.models import random_model
from refimpl.weights import Model

CONFIG = ModelConfig(16, 8, 8, 1, 2, 1, 4, max_position_embeddings=64, eos_token_ids=())
WINDOWED = replace(CONFIG, sliding_window=3)
MODELS = {
    window: random_model(config, np.random.default_rng(0), "float64") for window, config in ((0, CONFIG), (1, WINDOWED))
}
PEFT = PeftConfig(r=1, lora_alpha=2, target_modules=("q_proj", "v_proj"))
ADAPTERS = [random_adapter(CONFIG, PEFT, f"adapter {i}", np.random.default_rng(i)) for i in range(3)]


@dataclass(frozen=True)
class Arrival:
    """One request, and how many steps after the one before it comes."""

    prompt: tuple[int, ...]
    adapters: tuple[tuple[int, float], ...]
    new_tokens: int
    later: int

    def request(self) -> Request:
        return Request(list(self.prompt), [(ADAPTERS[i], weight) for i, weight in self.adapters] or None)


pairs = st.tuples(st.integers(0, 2), st.sampled_from((1.0, 0.5)))
requests = st.builds(
    Arrival,
    st.lists(st.sampled_from((1, 2)), min_size=1, max_size=9).map(tuple),
    st.lists(pairs, max_size=2, unique_by=lambda pair: pair[0]).map(tuple),
    st.integers(1, 3),
    st.integers(0, 2),
)


class Count:
    """What each request has in the cache, and which prefixes have been computed as full blocks."""

    def __init__(self, engine: Engine, forgets: bool) -> None:
        self.engine, self.forgets = engine, forgets  # whether blocks may be evicted, or passed by a window
        self.arrivals: dict[int, Arrival] = {}
        self.tokens: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.prefixes: set[tuple[object, ...]] = set()

    def add(self, arrivals: Arrival) -> None:
        number = self.engine.add(arrivals.request(), arrivals.new_tokens)
        self.arrivals[number], self.tokens[number] = arrivals, list(arrivals.prompt)

    def step(self) -> None:
        """One step of the engine, and what has to be true of it."""
        running = [number for number in self.tokens if number in self.computed]
        produced = {token.request_id: token for token in self.engine.step()}
        records = self.engine.last_step
        size = self.engine.cache.block_size
        assert sum(record.tokens for record in records) <= self.engine.max_batch_tokens
        assert len({record.request_id for record in records}) == len(records)
        for record in records:
            number = record.request_id
            if record.preempted:
                assert record.tokens == 0 and record.computed_before == self.computed.pop(number)
                continue
            if number in self.computed:
                assert record.computed_before == self.computed[number] and record.blocks_found == 0
            else:
                assert record.computed_before == record.blocks_found * size
                self.check_hits(number, record.blocks_found)
            self.check_slots(number, record.adapter_slots)
            assert 0 < record.tokens <= len(self.tokens[number]) - record.computed_before
            self.computed[number] = record.computed_before + record.tokens
            assert (number in produced) == (self.computed[number] == len(self.tokens[number]))
        self.check_order(running)
        for record in records:
            self.keep(record.request_id, size)
        for number, token in produced.items():
            self.tokens[number].append(token.token_id)
            if token.finish_reason:
                assert len(self.tokens[number]) == len(self.arrivals[number].prompt) + self.arrivals[number].new_tokens
                del self.tokens[number], self.computed[number]

    def check_order(self, running: Sequence[int]) -> None:
        """Who runs has come before who waits, unless it was preempted; and no room is left while a running one lacks
        some."""
        waiting = [number for number in self.tokens if number not in self.computed]
        if waiting and self.computed and not any(record.preempted for record in self.engine.last_step):
            assert max(self.computed) < min(waiting) or self.engine.preemptions
        used = sum(record.tokens for record in self.engine.last_step)
        behind = [number for number in running if number in self.computed and self.lacks(number)]
        assert not behind or used == self.engine.max_batch_tokens or self.engine.preemptions

    def lacks(self, number: int) -> int:
        return len(self.tokens[number]) - self.computed[number]

    def check_hits(self, number: int, hits: int) -> None:
        size, tokens = self.engine.cache.block_size, self.tokens[number]
        prefixes = [self.prefix(number, (i + 1) * size) in self.prefixes for i in range((len(tokens) - 1) // size)]
        most = prefixes.index(False) if False in prefixes else len(prefixes)
        assert hits <= most if self.forgets else hits == most

    def prefix(self, number: int, length: int) -> tuple[object, ...]:
        return self.arrivals[number].adapters, tuple(self.tokens[number][:length])

    def keep(self, number: int, size: int) -> None:
        if number in self.computed:
            for i in range(size, self.computed[number] + 1, size):
                self.prefixes.add(self.prefix(number, i))

    def check_slots(self, number: int, slots: Sequence[int]) -> None:
        slot_of: dict[Adapter, int] = self.engine.adapters.slot_of
        assert list(slots) == [slot_of[ADAPTERS[i]] for i, _ in self.arrivals[number].adapters]
        capacity = self.engine.adapters.capacity
        assert capacity is None or len(slot_of) <= capacity


@settings(max_examples=60, deadline=None)
@given(
    st.lists(requests, min_size=1, max_size=5),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from((60, 12)),
    st.sampled_from((None, 2)),
    st.booleans(),
    st.sampled_from((1, 3)),
)
def test_every_step_is_what_its_record_says_and_everybody_is_served(
    arrivals: list[Arrival],
    budget: int,
    block_size: int,
    num_blocks: int,
    max_adapters: int | None,
    windowed: bool,
    max_running: int,
) -> None:
    model: Model = MODELS[windowed]
    engine = Engine(
        model,
        num_blocks=num_blocks,
        block_size=block_size,
        max_batch_tokens=budget,
        max_adapters=max_adapters,
        max_running=max_running,
    )
    count = Count(engine, forgets=num_blocks < 60 or windowed)
    waiting, steps = list(arrivals), 0
    while waiting or engine.busy:
        while waiting and (waiting[0].later <= 0 or not engine.busy):
            count.add(waiting.pop(0))
        if waiting:
            waiting[0] = replace(waiting[0], later=waiting[0].later - 1)
        count.step()
        steps += 1
        assert steps < 400, "somebody waits for ever"
    assert not count.tokens and not count.computed and not engine.adapters.ref_counts
    assert engine.cache.available == num_blocks


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=5),
    st.sets(st.integers(0, 3), max_size=3),
    st.none() | st.integers(1, 4),
)
def test_admit_is_the_longest_beginning_of_the_queue_that_fits(
    waiting: list[list[int]], in_use: set[int], capacity: int | None
) -> None:
    lengths = range(len(waiting) + 1)
    room = len(waiting) if capacity is None else capacity
    fitting = [n for n in lengths if n == 0 or capacity is None or len(in_use.union(*waiting[:n])) <= room]
    assert list(admit(waiting, in_use, capacity)) == list(range(max(fitting)))


def test_the_count_sees_a_record_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Count(Engine(MODELS[0], block_size=2), forgets=False)
    count.add(Arrival((1, 2, 1), (), 1, 0))
    count.step()
    count.add(Arrival((1, 2, 1), (), 1, 0))
    count.prefixes.clear()
    with pytest.raises(AssertionError):
        count.step()
