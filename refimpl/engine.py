"""Continuous batching: requests come and go, and every step is one batch of whatever is there.

Prefill, chunked prefill and decode are one path. A request has tokens of which the first `computed` are in the
cache; a step computes some more of each, and whoever has all of them computed gets one token sampled.
"""

import collections
import itertools

import numpy as np

from .adapter import Adapter
from .adapter_cache import AdapterCache
from .arrays import Array, Precision, ceil_div, to_host
from .attention import first_visible
from .batch import ScheduledRequest, make_batch
from .errors import CacheFull, LogitsError, LoracleError, RequestError
from .kv_cache import NO_BLOCK, KVCache
from .model import forward, logit_width
from .ops import NUMPY, Ops
from .plans import Batch
from .request import Request, check_request, check_whole
from .request_state import RequestState, Token
from .sampler import sample
from .weights import Model


class Engine:
    """Serves requests with any mix of adapters from one base, one KV cache and one set of adapter slots.

    First come, first served; when blocks run out the youngest is preempted and computed again later. Nothing of that,
    and nothing that its neighbours do, changes what a request gets, beyond the order in which a product is summed.

    max_batch_tokens bounds the tokens of one step, max_running the requests in it, and max_adapters the adapters in
    memory (None: as many as come). LoracleError for a number below 1."""

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
    ) -> None:
        sizes = {"num_blocks": num_blocks, "block_size": block_size}
        sizes |= {"max_batch_tokens": max_batch_tokens, "max_running": max_running}
        for name, value in (sizes if max_adapters is None else sizes | {"max_adapters": max_adapters}).items():
            check_whole(name, value, 1)
        if not isinstance(precision, Precision | None):
            raise LoracleError(f"precision must be a Precision, not {type(precision).__name__}")
        self.model, self.ops = model, ops
        self.precision = model.precision(precision or Precision(ops.precision, model.dtype))
        self.cache = KVCache(model.config, num_blocks, block_size, self.precision, model.device, ops.select_victim)
        self.adapters = AdapterCache(model, self.precision, ops, max_adapters)
        self.max_batch_tokens, self.max_running, self.prefix_caching = max_batch_tokens, max_running, prefix_caching
        self.waiting: collections.deque[RequestState] = collections.deque()
        self.running: list[RequestState] = []  # oldest first
        self.preemptions = 0
        self._ids = itertools.count()

    def add(self, request: Request, max_new_tokens: int = 16) -> int:
        """Queue a request and return its id. RequestError or CacheFull if it could never be served."""
        limit = self.check(request, max_new_tokens)
        state = RequestState(next(self._ids), request, [int(i) for i in request.prompt_ids], limit)
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

    @property
    def busy(self) -> bool:
        """Is anything waiting or running?"""
        return bool(self.waiting or self.running)

    def step(self) -> list[Token]:
        """Run one batch and return the tokens it produced: an empty list if it only advanced prefills, or if there was
        no work.

        LogitsError for logits from which no token can be chosen: that request is dropped, and the others can go on."""
        scheduled = self._schedule()
        if not scheduled:
            return []
        # Requests of one adapter side by side: their rows are then one slice of the batch, not a gather (Punica).
        scheduled.sort(key=lambda item: [slot for slot, _ in item[0].adapters])
        rows = self._last_rows(scheduled)
        self._check_logits(rows, scheduled)
        tokens = []
        for row, (state, n) in zip(rows, scheduled, strict=True):
            state.computed += n
            self._cache_blocks(state)
            if state.computed == len(state.tokens):
                token = self._choose(row[: logit_width(state.request, self.model)], state)
                state.tokens.append(token)
                reason = self._finish_reason(state)
                tokens.append(Token(state.id, token, finish_reason=reason))
                if reason:
                    self._drop(state)
        return sorted(tokens, key=lambda token: token.request_id)

    # Scheduling: who computes how many tokens in this step.

    def _schedule(self) -> list[tuple[RequestState, int]]:
        """Who computes how many tokens: the running ones first, oldest first, then as many waiting ones as fit."""
        scheduled: list[tuple[RequestState, int]] = []
        budget, preemptions = self.max_batch_tokens, self.preemptions
        for state in list(self.running):
            n = min(len(state.tokens) - state.computed, budget)
            if n == 0 or state not in self.running:  # no room in this batch, or preempted by an older one just now
                continue
            self._free_passed_blocks(state)
            if self._make_room(state, n):
                scheduled.append((state, n))
                budget -= n
        # Strictly in order, so that nobody starves; and nobody new in a step that had to preempt.
        while self.waiting and budget > 0 and len(self.running) < self.max_running and preemptions == self.preemptions:
            state = self.waiting[0]
            if not self._admit(state, budget):
                break
            self.running.append(self.waiting.popleft())
            n = min(len(state.tokens) - state.computed, budget)
            scheduled.append((state, n))
            budget -= n
        return scheduled

    def _make_room(self, state: RequestState, n: int) -> bool:
        """Blocks for n more tokens, if need be by preempting the youngest; False if that was this one itself."""
        while not self._allocate(state, n):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is state:
                return False
        return True

    def _admit(self, state: RequestState, budget: int) -> bool:
        """Adapters, whatever prefix is cached, and blocks for the first chunk: all of it or nothing."""
        adapters = self.adapters.acquire_all(state.request.adapters)
        if adapters is None:
            return False
        state.adapters = adapters
        if self.prefix_caching:
            # The last token is always computed: its logits are what the request is here for.
            keys = self._keys(state, (len(state.tokens) - 1) // self.cache.block_size)
            state.table = self.cache.match_prefix(keys)
            state.computed = len(state.table) * self.cache.block_size
            self._free_passed_blocks(state)  # or a long prefix would hold blocks that the window has passed
        if self._allocate(state, min(len(state.tokens) - state.computed, budget)):
            return True
        self._release(state)
        return False

    def _allocate(self, state: RequestState, n: int) -> bool:
        """Blocks for n more tokens, or False."""
        missing = ceil_div(state.computed + n, self.cache.block_size) - len(state.table)
        if missing > self.cache.available:
            return False
        state.table += self.cache.allocate(missing) if missing > 0 else []
        return True

    def _free_passed_blocks(self, state: RequestState) -> None:
        """Free the blocks that no token to come can see: the sliding window has passed them."""
        passed = first_visible(state.computed, self.model.config.sliding_window) // self.cache.block_size
        self.cache.free(state.table[:passed])
        state.table[:passed] = [NO_BLOCK] * passed

    def _preempt(self, state: RequestState) -> None:
        """Back to the head of the queue; its tokens, the produced ones too, will be computed again."""
        self._drop(state)
        self.waiting.appendleft(state)
        self.preemptions += 1

    def _drop(self, state: RequestState) -> None:
        self.running.remove(state)
        self._release(state)

    def _release(self, state: RequestState) -> None:
        """Give back the blocks and the adapters that a request holds."""
        self.cache.free(state.table)
        for slot, _ in state.adapters:
            self.adapters.release(slot)
        state.table, state.adapters, state.computed = [], (), 0

    # One step's plan, its numbers, and what is kept of it. The oracle's engine overrides these two to look at every row
    # and to force tokens (refimpl/engines/ours.py).

    def _last_rows(self, scheduled: list[tuple[RequestState, int]]) -> Array:
        """The logits of each one's last token."""
        batch = self._batch(scheduled)
        return to_host(forward(self.model, batch, self.cache, self.adapters.slots, self.ops, self.precision))

    def _choose(self, row: Array, state: RequestState) -> int:
        """The next token of a request."""
        return sample(row, state.request, state.produced)

    def _check_logits(self, rows: Array, scheduled: list[tuple[RequestState, int]]) -> None:
        """LoracleError that names the request whose row is no distribution; nothing else has changed then."""
        for row, (state, n) in zip(rows, scheduled, strict=True):
            sampled = state.computed + n == len(state.tokens)
            if sampled and not row[: logit_width(state.request, self.model)].max() > -np.inf:
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
            )
            for state, n in scheduled
        ]
        return make_batch(requests, self.cache, self.adapters.slots, self.ops)

    def _keys(self, state: RequestState, count: int) -> list[bytes]:
        """The prefix keys of its first `count` blocks."""
        if len(state.keys) < count:  # a digest reads a whole adapter: not for a request without a full block
            size = self.cache.block_size
            adapters = [(self.adapters.digest(slot), weight) for slot, weight in state.adapters]
            base = self.model.identity + self.model.config.rope_key(state.limit - 1)
            for i in range(len(state.keys), count):
                parent, block = state.keys[-1] if state.keys else b"", state.tokens[i * size : (i + 1) * size]
                state.keys.append(self.ops.prefix_key(parent, block, base, self.precision, adapters))
        return state.keys[:count]

    def _cache_blocks(self, state: RequestState) -> None:
        """Let others match the blocks that are full now."""
        if self.prefix_caching:
            keys = self._keys(state, state.computed // self.cache.block_size)
            for block, key in zip(state.table, keys, strict=False):
                if block != NO_BLOCK:
                    self.cache.cache_block(block, key)

    def _finish_reason(self, state: RequestState) -> str | None:
        stops = self.model.config.eos_token_ids if state.request.stop_ids is None else state.request.stop_ids
        return "stop" if state.tokens[-1] in stops else "length" if len(state.tokens) >= state.limit else None

    def _check_fits(self, request: Request, prompt: int, limit: int) -> None:
        """CacheFull if the blocks that it may hold at once are more than there are."""
        size, most = (
            self.cache.block_size,
            peak_blocks(limit - 1, self.cache.block_size, self.max_batch_tokens, self.model.config.sliding_window),
        )
        if most > self.cache.num_blocks:
            raise CacheFull(
                f"a prompt of {prompt} tokens and up to {limit - prompt} new ones need {most} KV blocks of "
                f"{size} tokens; the cache has {self.cache.num_blocks}"
            )
        capacity = self.adapters.capacity
        if capacity is not None and len(request.adapters) > capacity:
            raise RequestError(f"a request sums {len(request.adapters)} adapters; the adapter cache holds {capacity}")


def peak_blocks(tokens: int, block_size: int, max_batch_tokens: int, window: int | None) -> int:
    """The most blocks that a request holds at once while `tokens` tokens are computed, in chunks that may begin
    anywhere: after a prefix hit, or beside others. The last token that it produces is never computed."""
    computed = np.arange(tokens) if window is not None else np.zeros(1, int)
    n = np.minimum(tokens - computed, tokens if window is None else max_batch_tokens)
    passed = np.maximum(0, computed - window + 1) // block_size if window is not None else 0
    return int((-(-(computed + n) // block_size) - passed).max())
