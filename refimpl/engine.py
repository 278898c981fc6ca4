"""Continuous batching: requests come and go, and every step is one batch of whatever is there.

Prefill (computing a prompt), chunked prefill (some of it now, the rest in later steps) and decode (one token after
another) are one path. A request has tokens of which the first `computed` are in the cache; a step computes some more
of each, and whoever has all of them computed gets one token sampled.

    step          1    2    3    4    5          budget: 10 tokens a step
    pirate       10   10    6    1    1          a prompt of 26: two full steps, the rest, then one token a step
    robot         .    .    4    9    9          a prompt of 22 has what is left of the budget
"""

import collections
import itertools
from collections.abc import Callable

import numpy as np

from .adapter import Adapter
from .adapter_cache import AdapterCache
from .alora import starts_of
from .arrays import Array, Precision, to_host
from .batch import ScheduledRequest, make_batch
from .errors import LogitsError, LoracleError, RequestError
from .fixed_slots import FixedPool
from .kv_cache import KVCache
from .model import forward, logit_width
from .ops import NUMPY, Ops
from .plans import Batch
from .request import Request, check_request, check_whole
from .request_state import RequestState, Token
from .sampler import sample
from .scheduler import Scheduler
from .step_record import ScheduledStep
from .unified_pool import UnifiedPool
from .weights import Model


class Engine(Scheduler):
    """Serves requests with any mix of adapters from one base, one KV cache and one set of adapter slots.

    First come, first served; when blocks run out the youngest is preempted and computed again later. Nothing of that,
    and nothing that its neighbours do, changes what a request gets, beyond the order in which a product is summed.

    max_batch_tokens bounds the tokens of one step, max_running the requests in it, and max_adapters the adapters in
    memory (None: as many as come). pool makes what keys, values and adapters lie in: UnifiedPool, FixedPool, or None, a
    KVCache and an AdapterCache that keeps each adapter at its own rank. LoracleError for a number below 1."""

    def __init__(
        self,
        model: Model,
        ops: Ops = NUMPY,
        precision: Precision | None = None,
        num_blocks: int = 512,
        block_size: int = 16,
        max_batch_tokens: int = 512,
        max_running: int = 64,
        max_adapters: int | None = None,
        prefix_caching: bool = True,
        pool: Callable[[Model, Precision, Ops, int, int, int | None], UnifiedPool | FixedPool] | None = None,
    ) -> None:
        sizes = {"num_blocks": num_blocks, "block_size": block_size}
        sizes |= {"max_batch_tokens": max_batch_tokens, "max_running": max_running}
        for name, value in (sizes if max_adapters is None else sizes | {"max_adapters": max_adapters}).items():
            check_whole(name, value, 1)
        if not isinstance(precision, Precision | None):
            raise LoracleError(f"precision must be a Precision, not {type(precision).__name__}")
        p = model.precision(precision or Precision(ops.precision, model.dtype))
        cache: KVCache
        adapters: AdapterCache
        if pool is None:
            cache = KVCache(
                model.config, num_blocks, block_size, p, model.device, ops.select_victim, ops.latent.kv_shape
            )
            adapters = AdapterCache(model, p, ops, max_adapters)
        else:
            shared = pool(model, p, ops, num_blocks, block_size, max_adapters)
            cache, adapters = shared.cache, shared.adapters
        super().__init__(model, ops, p, cache, adapters, max_batch_tokens, max_running, prefix_caching)
        self.last_step: tuple[ScheduledStep, ...] = ()  # what the last step did, in the order of the batch's rows
        self._ids = itertools.count()

    def add(self, request: Request, max_new_tokens: int = 16) -> int:
        """Queue a request and return its id. RequestError or CacheFull if it could never be served."""
        limit = self.check(request, max_new_tokens)
        starts = starts_of(request, self.ops.activation_start)
        state = RequestState(next(self._ids), request, [int(i) for i in request.prompt_ids], limit, starts=starts)
        self.waiting.append(state)
        return state.id

    def check(self, request: Request, max_new_tokens: int = 16) -> int:
        """Return the length at which the request would end. RequestError or CacheFull if it could never be served,
        however long it waited."""
        check_request(request, self.model.config)
        new_tokens = max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        check_whole("max_new_tokens", new_tokens, 1)
        prompt = len(request.prompt_ids)
        limit = min(prompt + int(new_tokens), self.model.config.max_position_embeddings + 1)
        self._check_fits(request, prompt, limit)
        return limit

    def cancel(self, request_id: int) -> None:
        """Forget a request and free what it holds. One that has finished already is no mistake."""
        for state in [state for state in self.running if state.id == request_id]:
            self._drop(state)
        self.waiting = collections.deque(state for state in self.waiting if state.id != request_id)

    def unload(self, adapter: Adapter) -> None:
        """Forget an adapter that no request waits for: its slot is free, and nothing here refers to it.

        Blocks that were computed with it can be matched by it alone, and are evicted as others need their room.
        RequestError for one that a running or waiting request uses, LoracleError for one that is not loaded."""
        users = [state.id for state in (*self.running, *self.waiting) if adapter in dict(state.request.adapters)]
        if users:
            raise RequestError(f"adapter {adapter.name} is used by request {users[0]}: it cannot be unloaded")
        self.adapters.unload(adapter)

    def step(self) -> list[Token]:
        """Run one batch and return the tokens it produced: an empty list if it only advanced prefills, or if there was
        no work.

        LogitsError for logits from which no token can be chosen: that request is dropped, and the others can go on.
        What it did stands in `last_step`, where the preempted requests follow those of the batch."""
        self.last_step, self._preempted = (), []
        scheduled = self._schedule()
        if not scheduled:
            self.last_step = tuple(self._preempted)
            self._check_progress()
            return []
        # Requests of one adapter side by side: their rows are then one slice of the batch, not a gather.
        scheduled.sort(key=lambda item: [slot for slot, _ in item[0].adapters])
        rows = [
            row[: logit_width(state.request, self.model)]
            for row, (state, _) in zip(self._last_rows(scheduled), scheduled, strict=True)
        ]
        self.last_step = self._record(rows, scheduled)
        self._check_logits(rows, scheduled)
        tokens = []
        for row, (state, n) in zip(rows, scheduled, strict=True):
            state.computed += n
            self._cache_blocks(state)
            if state.computed == len(state.tokens):
                token = self._choose(row, state)
                state.tokens.append(token)
                reason = self._finish_reason(state)
                tokens.append(Token(state.id, token, finish_reason=reason))
                if reason:
                    self._drop(state)
        return sorted(tokens, key=lambda token: token.request_id)

    # One step's plan, its numbers, and what is kept of it. The oracle's engine overrides these two to look at every row
    # and to force tokens (refimpl/engines/ours.py).

    def _last_rows(self, scheduled: list[tuple[RequestState, int]]) -> Array:
        """The logits of each one's last token."""
        batch = self._batch(scheduled)
        return to_host(forward(self.model, batch, self.cache, self.adapters.slots, self.ops, self.precision))

    def _choose(self, row: Array, state: RequestState) -> int:
        """The next token of a request."""
        return sample(row, state.request, state.produced)

    def _record(self, rows: list[Array], scheduled: list[tuple[RequestState, int]]) -> tuple[ScheduledStep, ...]:
        """What this step does, noted before any of it is forgotten."""
        records = []
        for row, (state, n) in zip(rows, scheduled, strict=True):
            records.append(
                ScheduledStep(
                    state.id,
                    computed_before=state.computed,
                    tokens=n,
                    blocks_found=state.blocks_found,
                    adapter_slots=tuple(slot for slot, _ in state.adapters),
                    evicted=state.evicted,
                    logits=row,
                )
            )
            state.blocks_found, state.evicted = 0, ()
        return (*records, *self._preempted)

    def _check_logits(self, rows: list[Array], scheduled: list[tuple[RequestState, int]]) -> None:
        """LoracleError that names the request whose row is no distribution; nothing else has changed then."""
        for row, (state, n) in zip(rows, scheduled, strict=True):
            sampled = state.computed + n == len(state.tokens)
            if sampled and not row.max() > -np.inf:
                self._drop(state)
                raise LogitsError(f"request {state.id}: its logits hold NaN, or nothing above -inf: no token is chosen")

    def _batch(self, scheduled: list[tuple[RequestState, int]]) -> Batch:
        requests = [
            ScheduledRequest(
                state.tokens[state.computed : state.computed + n],
                state.computed,
                state.table,
                state.adapters,
                state.limit - 1,  # the last token that it produces is never computed
                state.starts,
            )
            for state, n in scheduled
        ]
        return make_batch(requests, self.cache, self.adapters.slots, self.ops)

    def _finish_reason(self, state: RequestState) -> str | None:
        stops = self.model.config.eos_token_ids if state.request.stop_ids is None else state.request.stop_ids
        return "stop" if state.tokens[-1] in stops else "length" if len(state.tokens) >= state.limit else None
