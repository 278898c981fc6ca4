"""An engine that is watched while it serves: which logits it computed, and whose keys and values lie in which slot.

The watch keeps a second memory: for every slot of the cache the whole history that its contents depend on, as plain
tuples, no hash and no key. Before each forward pass it asserts that every slot that a request is about to read holds
that request's own history, and that no slot is written for two.
"""

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from refimpl import Engine, Model, Ops, Request, Token, generate, logits
from refimpl.adapter import Adapter
from refimpl.kv_cache import NO_BLOCK
from refimpl.plans import Batch
from refimpl.request_state import RequestState
from refimpl.tiles import first_visible
from support.compare import assert_equal_to_rounding

MANY_STEPS = 2000
History = tuple


@dataclass
class Watch:
    """What was seen of one engine."""

    same: Callable[[Adapter], object] = id  # adapters that may share a block: by default only an adapter with itself
    rows: dict[int, list[tuple[int, np.ndarray]]] = field(default_factory=lambda: collections.defaultdict(list))
    tokens: dict[int, list[int]] = field(default_factory=lambda: collections.defaultdict(list))
    reasons: dict[int, str] = field(default_factory=dict)
    holds: dict[int, History] = field(default_factory=dict)  # slot -> what its key and value were computed from
    hits: int = 0  # blocks that were found by their key


class WatchedEngine(Engine):
    """Engine, with the watch around each of its steps."""

    def __init__(self, *args: object, watch: Watch | None = None, **options: object) -> None:
        super().__init__(*args, **options)
        self.watch = watch or Watch()

    def step(self) -> list[Token]:
        tokens = super().step()
        for record in self.last_step:
            self.watch.hits += record.blocks_found
            if not record.preempted:
                position = record.computed_before + record.tokens - 1
                self.watch.rows[record.request_id].append((position, record.logits))
        for token in tokens:
            self.watch.tokens[token.request_id].append(token.token_id)
            if token.finish_reason:
                self.watch.reasons[token.request_id] = token.finish_reason
        self.check_counts()
        return tokens

    def _batch(self, scheduled: list[tuple[RequestState, int]]) -> Batch:
        self.check_adapters()
        self._check_reads(scheduled)
        return super()._batch(scheduled)

    def check_counts(self) -> None:
        """Blocks and slots have as many users as there are running requests that hold them, and none is lost."""
        blocks = collections.Counter(b for g in self.running for b in g.table if b != NO_BLOCK)
        slots = collections.Counter(slot for g in self.running for slot, _ in g.adapters)
        assert self.cache.ref_counts == blocks, "the users of the blocks are not the running requests"
        assert self.adapters.ref_counts == slots, "the users of the adapter slots are not the running requests"
        adapters = self.adapters.blocks_for(adapter for g in self.running for adapter, _ in g.request.adapters)
        blocks_and_adapters = self.cache.available + self.cache.in_use + adapters
        assert blocks_and_adapters == self.cache.num_blocks, "a block was lost, or has two lives"

    def check_adapters(self) -> None:
        """Every slot that a running request names holds exactly the weights of the adapter that it asked for."""
        for g in self.running:
            assert len(g.adapters) == len(g.request.adapters)
            for (slot, weight), (adapter, wanted) in zip(g.adapters, g.request.adapters, strict=True):
                assert weight == wanted
                for module in self.model.config.modules():
                    found, own = self.adapters.slots.at(module).get(slot), adapter.lora.get(module)
                    assert (found is None) == (own is None), f"slot {slot} is not {adapter.name} at {module}"
                    if found is not None and own is not None:
                        assert np.array_equal(found.A, own.A), f"slot {slot} is not {adapter.name} at {module}"
                        assert np.array_equal(found.B, own.B), f"slot {slot} is not {adapter.name} at {module}"

    def _check_reads(self, scheduled: list[tuple[RequestState, int]]) -> None:
        """Ask the second memory about every read of this step, then note its writes."""
        size, window, holds = self.cache.block_size, self.model.config.sliding_window, self.watch.holds
        written: set[int] = set()
        for g, n in scheduled:
            for position in range(g.computed, g.computed + n):
                slot = g.table[position // size] * size + position % size
                assert slot not in written, f"slot {slot} is written for two tokens in one step"
                written.add(slot)
                holds[slot] = self._history(g, position)
        for g, n in scheduled:
            for position in range(first_visible(g.computed, window), g.computed + n):
                assert g.table[position // size] != NO_BLOCK, f"position {position} is visible, its block given back"
                slot = g.table[position // size] * size + position % size
                assert holds.get(slot) == self._history(g, position), f"slot {slot} holds another request's history"

    def _history(self, g: RequestState, position: int) -> History:
        adapters = tuple(
            (self.watch.same(adapter), weight, start)
            for (adapter, weight), start in zip(g.request.adapters, g.starts, strict=True)
            if start <= position
        )
        return (*g.tokens[: position + 1], adapters)


def serve(
    model: Model, requests: Sequence[Request], ops: Ops, max_new_tokens: int = 4, scramble: int | None = None, **options
) -> tuple[WatchedEngine, list[int]]:
    """All the requests through one watched engine, until nothing is left to do: the engine, and the requests' ids."""
    engine = WatchedEngine(model, ops, **options)
    if scramble is not None:  # the blocks come back in an order of our own
        blocks = engine.cache.allocate(engine.cache.num_blocks)
        engine.cache.free(np.random.default_rng(scramble).permutation(blocks).tolist())
    ids = [engine.add(request, max_new_tokens) for request in requests]
    finish(engine)
    return engine, ids


def finish(engine: Engine) -> None:
    """Step until nobody waits. An engine that goes round in circles is an error, not a test that hangs."""
    for _ in range(MANY_STEPS):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError(f"after {MANY_STEPS} steps there is still work: {engine.waiting or engine.running}")


def assert_as_if_alone(
    engine: WatchedEngine, ids: Sequence[int], requests: Sequence[Request], max_new_tokens: int = 4
) -> None:
    """Each request got the tokens that generate() gives it alone, and every row of logits on the way is that of one
    whole prefill of the same tokens."""
    model, ops, watch = engine.model, engine.ops, engine.watch
    for i, request in zip(ids, requests, strict=True):
        alone = generate(model, [request], max_new_tokens, ops)[0]
        assert watch.tokens[i] == alone.token_ids
        assert watch.reasons[i] == alone.finish_reason
        whole = replace(request, prompt_ids=[*request.prompt_ids, *watch.tokens[i][:-1]])
        expected = logits(model, [whole], ops)[0]
        positions = [position for position, _ in watch.rows[i]]
        assert set(positions) >= set(range(len(request.prompt_ids) - 1, len(expected)))
        assert_equal_to_rounding(np.stack([row for _, row in watch.rows[i]]), expected[positions])
