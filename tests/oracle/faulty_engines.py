"""Engines with a bug in their memory, each a few lines around our own; and a quick judge of sequences.

They were written for these tests and know nothing of refimpl/oracle/bugs: what a drawn sequence shows of them, it
shows of bugs that nobody thought of when it was drawn.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from refimpl import NUMPY, Ops
from refimpl.adapter import Adapter
from refimpl.adapter_slots import BoundAdapter
from refimpl.arrays import Array
from refimpl.engines import ours
from refimpl.engines.interface import Settings
from refimpl.engines.ours import Observed, Ours
from refimpl.oracle.bugs.steps import unchecked
from refimpl.oracle.cases.case import Case, Exchange, play, teacher_forced, truth
from refimpl.oracle.cases.testbed import Testbed
from refimpl.oracle.noise.ensemble import ensemble, honest_runs
from refimpl.oracle.noise.readout import Unreadable, rows_of, view
from refimpl.request_state import RequestState


def but(**steps: object) -> Ops:
    """NUMPY with these steps replaced. Who has such a bug does not check for it."""
    return replace(NUMPY, check_batch=unchecked, **steps)


class Served(Ours):
    """Ours around another server."""

    server_class: type[Observed] = Observed

    def reset(self) -> None:
        original, ours.Observed = ours.Observed, self.server_class
        try:
            super().reset()
        finally:
            ours.Observed = original
        self.server.ops = replace(self.server.ops, check_batch=unchecked)
        self.spoil()

    def spoil(self) -> None:
        """What is done to the fresh server."""


# Names, and the weights behind them.


class StaleAfterReload(Ours):
    """load of a name that is known returns early (vllm-metal 351)."""

    def load(self, name: str, folder: Path) -> None:
        if name not in self.names:
            super().load(name, folder)


class StaleAfterReuse(Ours):
    """A name keeps the first weights that it ever had (sglang 8263)."""

    def reset(self) -> None:
        super().reset()
        self.first: dict[str, Adapter] = {}

    def load(self, name: str, folder: Path) -> None:
        super().load(name, folder)
        self.names[name] = self.first.setdefault(name, self.names[name])


class StaleAfterIdReuse(Ours):
    """Adapters get the lowest free id; what was made ready for an id is kept for its next owner."""

    def reset(self) -> None:
        super().reset()
        self.ids: dict[str, int] = {}
        self.ready: dict[int, Adapter] = {}

    def load(self, name: str, folder: Path) -> None:
        super().load(name, folder)
        if name in self.ids:  # in place: this much was thought of
            self.ready[self.ids[name]] = self.names[name]
        else:
            self.ids[name] = min(i for i in range(99) if i not in self.ids.values())
        self.names[name] = self.ready.setdefault(self.ids[name], self.names[name])

    def unload(self, name: str) -> None:
        super().unload(name)
        del self.ids[name]


class SlotNotReloaded(Served):
    """An evicted slot gets its new owner's name, and keeps the weights of the old one."""

    def spoil(self) -> None:
        slots, put = self.server.adapters.slots, self.server.adapters.slots.put
        filled: set[int] = set()

        def once(slot: int, bound: BoundAdapter) -> None:
            if slot not in filled:
                put(slot, bound)
                filled.add(slot)

        slots.put = once  # type: ignore[method-assign]


victim_in_use = but(
    select_victim=lambda last_used, ref_counts: min(last_used, key=last_used.__getitem__, default=None),
    admit=lambda waiting, in_use, capacity: range(len(waiting)),  # nobody asks whether there is room
)


# Keys of prefixes.

key_without_adapter = but(prefix_key=lambda parent, ids, base, p, adapters: NUMPY.prefix_key(parent, ids, base, p, ()))
key_without_parent = but(prefix_key=lambda parent, *rest: NUMPY.prefix_key(b"", *rest))
key_without_weight = but(
    prefix_key=lambda parent, ids, base, p, adapters: NUMPY.prefix_key(
        parent, ids, base, p, [(x, 1.0) for x, _ in adapters]
    )
)


class KeyByName(Served):
    """Prefixes are keyed by the adapter's name (vllm 30931)."""

    def spoil(self) -> None:
        cache = self.server.adapters

        def digest(slot: int) -> bytes:
            return hashlib.sha256(
                next(adapter.name for adapter, number in cache.slot_of.items() if number == slot).encode()
            ).digest()

        cache.digest = digest  # type: ignore[method-assign]


class RelativeKeys(Observed):
    """The hash of a block is taken from the chunk's tokens, counted from the chunk's beginning (inference-sim 196)."""

    def _keys(self, state: RequestState, count: int) -> list[bytes]:
        tokens, n = state.tokens, self.max_batch_tokens
        state.tokens = tokens[:n] * (len(tokens) // n + 1)
        try:
            return super()._keys(state, count)
        finally:
            state.tokens = tokens


class PublishedTooEarly(Observed):
    """The block that a chunk has begun is published before it is full (vllm 34587)."""

    def _cache_blocks(self, state: RequestState) -> None:
        computed = state.computed
        state.computed = min(
            -(-computed // self.cache.block_size) * self.cache.block_size, len(state.request.prompt_ids)
        )
        super()._cache_blocks(state)
        state.computed = computed


# Positions and blocks.


def _restart(computed: Sequence[int], lengths: Sequence[int]) -> Array:
    """A prompt that is continued after a prefix hit begins at 0 again (MinivLLM 98); decoding does not."""
    return NUMPY.positions([0 if n > 1 else start for start, n in zip(computed, lengths, strict=True)], lengths)


def _off_by_one(computed: Sequence[int], lengths: Sequence[int]) -> Array:
    """A chunk that is neither the first nor a single token begins one place too early."""
    return NUMPY.positions([start - (start > 0 and n > 1) for start, n in zip(computed, lengths, strict=True)], lengths)


class CancelledRunsOn(Observed):
    """A cancelled request's blocks are free at once, but it runs to its end, and writes into them."""

    def cancel(self, request_id: int) -> None:
        self.dead = getattr(self, "dead", set())
        for state in self.running:
            if state.id == request_id and state.id not in self.dead:
                self.dead.add(state.id)
                self.cache.free(state.table)

    def _allocate(self, state: RequestState, n: int) -> bool:
        if state.id in getattr(self, "dead", ()):
            return len(state.table) * self.cache.block_size >= state.computed + n or self._forget(state)
        return super()._allocate(state, n)

    def _cache_blocks(self, state: RequestState) -> None:
        if state.id not in getattr(self, "dead", ()):
            super()._cache_blocks(state)

    def _forget(self, state: RequestState) -> bool:
        state.limit = len(state.tokens)
        return False

    def _preempt(self, state: RequestState) -> None:
        if state.id in getattr(self, "dead", ()):
            self._drop(state)
        else:
            super()._preempt(state)

    def _release(self, state: RequestState) -> None:
        if state.id in getattr(self, "dead", ()):
            state.table = []
        super()._release(state)


class PreemptedKeepsItsPlace(Observed):
    """A preempted request goes on where it was, in blocks that hold somebody else's keys and values."""

    def _release(self, state: RequestState) -> None:
        computed = state.computed
        super()._release(state)
        state.resumes = computed  # type: ignore[attr-defined]

    def _admit(self, state: RequestState, budget: int) -> bool:
        resumes = min(getattr(state, "resumes", 0), len(state.tokens) - 1)
        admitted = super()._admit(state, budget)
        if admitted and resumes > state.computed and self._allocate(state, resumes + 1 - state.computed):
            state.computed = resumes
        return admitted


def plan_by_shape() -> Ops:
    """Which rows get which adapter is remembered by the lengths of the batch (nanovllm-voxcpm 66)."""
    plans: dict[tuple[int, ...], tuple[Array, Array]] = {}

    def rows(per_request: Sequence, lengths: Sequence[int]) -> tuple[Array, Array]:
        shape = (*lengths, max(map(len, per_request)))
        return plans.setdefault(shape, NUMPY.lora_mapping(per_request, lengths))

    return but(lora_mapping=rows)


def of_server(server: type[Observed]) -> type[Served]:
    """Ours around this server."""
    return type(server.__name__, (Served,), {"server_class": server})


Make = Callable[..., Ours]


def _of_ops(make: Callable[[], Ops]) -> Make:
    return lambda **options: Ours(make, **options)


# Name -> how to make the engine, and which of sequences.variants it needs: 0 all at once, 1 chunks, 2 little room.
FAULTY: dict[str, tuple[Make, int]] = {
    "stale after reload": (StaleAfterReload, 0),
    "stale after a name is reused": (StaleAfterReuse, 0),
    "stale after an id is reused": (StaleAfterIdReuse, 0),
    "evicted slot not reloaded": (SlotNotReloaded, 0),
    "victim in use": (_of_ops(lambda: victim_in_use), 0),
    "key without adapter": (_of_ops(lambda: key_without_adapter), 0),
    "key without weight": (_of_ops(lambda: key_without_weight), 0),
    "key without parent": (_of_ops(lambda: key_without_parent), 0),
    "key by name": (KeyByName, 0),
    "positions restart after a hit": (_of_ops(lambda: but(positions=_restart)), 0),
    "plan kept by shape": (_of_ops(plan_by_shape), 0),
    "cancelled runs on": (of_server(CancelledRunsOn), 0),
    "position after a chunk": (_of_ops(lambda: but(positions=_off_by_one)), 1),
    "keys relative to the chunk": (of_server(RelativeKeys), 1),
    "published too early": (of_server(PublishedTooEarly), 1),
    "preempted keeps its place": (of_server(PreemptedKeepsItsPlace), 2),
}


class Judge:
    """Is any answer further from the truth than `limit` times the noise? What is asked twice is computed once."""

    def __init__(self, testbed: Testbed, limit: float = 6.0) -> None:
        self.testbed, self.limit = testbed, limit
        self.members = ensemble(testbed.dtype)[:2]
        self.truths: dict[object, tuple[Array, Array]] = {}

    def ratio(self, exchanges: Sequence[Exchange]) -> float:
        """Of the worst answer; infinite for one that cannot be read."""
        counted = [exchange for exchange in exchanges if exchange.request.cancel_after is None]
        if any(
            exchange.response.error
            or len(exchange.response.token_ids) != exchange.request.max_new_tokens
            or not rows_of(exchange.response)
            for exchange in counted
        ):
            return np.inf
        self._compute([exchange for exchange in counted if _key(exchange) not in self.truths])
        return max((self._one(exchange) for exchange in counted), default=0.0)

    def __call__(self, exchanges: Sequence[Exchange], testbed: Testbed) -> str:
        ratio = self.ratio(exchanges)
        return "" if ratio <= self.limit else f"{ratio:.3g} x noise"

    def fails(self, engine: Ours) -> Callable[[Case], bool]:
        """For shrink."""
        return lambda case: bool(self(play(engine, case, self.testbed), self.testbed))

    def _compute(self, new: Sequence[Exchange]) -> None:
        if not new:
            return
        exact = truth(new, self.testbed)
        runs = honest_runs(
            self.testbed.model, [teacher_forced(exchange, self.testbed.adapters) for exchange in new], self.members
        )
        for i, exchange in enumerate(new):
            errors = np.stack([run[i].astype(np.float64) - exact[i] for run in runs])
            self.truths[_key(exchange)] = exact[i], np.sqrt(np.mean(errors**2, axis=(0, 2)))

    def _one(self, exchange: Exchange) -> float:
        exact, unit = self.truths[_key(exchange)]
        rows = slice(exchange.response.first_position, exchange.response.first_position + rows_of(exchange.response))
        try:
            shown = view(exchange.response, exact[rows])
        except Unreadable:
            return np.inf
        error = shown.values - shown.of(exact[rows])
        return float(np.max(np.sqrt(np.mean(error**2, axis=1)) / unit[rows]))


def _key(exchange: Exchange) -> object:
    return exchange.request.prompt_ids, exchange.response.token_ids[:-1], exchange.adapters


def started(make: Make, testbed: Testbed, settings: Settings) -> Ours:
    """The engine, over what the testbed has loaded already."""
    engine = make(model=testbed.model, adapters={path: testbed.adapters[key] for key, path in testbed.paths.items()})
    engine.start(settings)
    return engine
