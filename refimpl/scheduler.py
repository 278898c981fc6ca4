"""Who computes how many tokens in a step, and what that takes: blocks, adapter slots, and who must wait or give way.

waiting  --admit: adapters, cached prefix, first blocks-->  running  --last token-->  gone
         <---------preempt: all of it given back----------
"""

import collections
import itertools
from collections.abc import Sequence

import numpy as np

from .adapter_cache import AdapterCache
from .arrays import Precision, ceil_div
from .errors import CacheFull, LoracleError, RequestError
from .kv_cache import NO_BLOCK, KVCache
from .ops import Ops
from .policies import loaded_first
from .request import Request
from .request_state import RequestState
from .step_record import ScheduledStep
from .tiles import first_visible
from .weights import Model


class Scheduler:
    """The requests that wait and those that run, one KV cache, and one set of adapter slots."""

    def __init__(
        self,
        model: Model,
        ops: Ops,
        precision: Precision,
        cache: KVCache,
        adapters: AdapterCache,
        max_batch_tokens: int,
        max_running: int,
        prefix_caching: bool,
    ) -> None:
        self.model, self.ops, self.precision = model, ops, precision
        self.cache, self.adapters = cache, adapters
        self.max_batch_tokens, self.max_running, self.prefix_caching = max_batch_tokens, max_running, prefix_caching
        self.waiting: collections.deque[RequestState] = collections.deque()
        self.running: list[RequestState] = []  # oldest first
        self.preemptions = 0
        self._preempted: list[ScheduledStep] = []  # in this step

    @property
    def busy(self) -> bool:
        """Is anything waiting or running?"""
        return bool(self.waiting or self.running)

    def _schedule(self) -> list[tuple[RequestState, int]]:
        """Who computes how many tokens: the running ones first, oldest first, then as many waiting ones as fit."""
        scheduled: list[tuple[RequestState, int]] = []
        running = list(self.running)
        for state, n in zip(running, self._tokens_now(running, self.max_batch_tokens), strict=True):
            if n == 0 or state not in self.running:  # no room in this batch, or preempted by an older one just now
                continue
            self._free_passed_blocks(state)
            if self._make_room(state, n):
                scheduled.append((state, n))
        if self._preempted:  # nobody new in a step that had to preempt
            return scheduled
        scheduled += self._admit_waiting(scheduled)
        self.adapters.prefetch(adapter for state in self._next() for adapter, _ in state.request.adapters)
        return scheduled

    def _admit_waiting(self, scheduled: list[tuple[RequestState, int]]) -> list[tuple[RequestState, int]]:
        """As many waiting ones as fit beside these, in the order of Ops.admit, until one finds no room."""
        budget = self.max_batch_tokens - sum(n for _, n in scheduled)
        if not self.waiting or budget == 0 or len(self.running) >= self.max_running:
            return []
        admitted: list[tuple[RequestState, int]] = []
        for state in self._admissible():
            if budget == 0 or len(self.running) >= self.max_running or not self._admit(state, budget):
                break
            self._leave_queue(state)
            self.running.append(state)
            [n] = self._tokens_now([state], budget)
            admitted.append((state, n))
            budget -= n
        return admitted

    def _admissible(self) -> list[RequestState]:
        """The waiting ones that Ops.admit lets in. It sees as many as may run at once, not all of a long queue."""
        states = self._next()
        in_use = {adapter for state in self.running for adapter, _ in state.request.adapters}
        adapters = [[adapter for adapter, _ in state.request.adapters] for state in states]
        order = list(self.ops.admit(adapters, in_use, self.adapters.capacity))
        if len(set(order)) < len(order) or not set(order) <= set(range(len(states))):
            raise LoracleError(f"admit returned {order}: expected different indices of {len(states)} waiting requests")
        return [states[i] for i in order]

    def _next(self) -> list[RequestState]:
        """The waiting ones that are tried next, as many as may run at once: in the order of arrival, or, where the
        adapters' patience lets them, those first whose adapters are loaded."""
        patience = self.adapters.patience
        if patience == 0:
            return list(itertools.islice(self.waiting, self.max_running))
        states = list(self.waiting)
        loaded = [all(adapter in self.adapters for adapter, _ in state.request.adapters) for state in states]
        order = loaded_first(loaded, [state.overtaken for state in states], patience)
        return [states[i] for i in order[: self.max_running]]

    def _leave_queue(self, state: RequestState) -> None:
        """Take a request out of the queue: those before it have been overtaken."""
        for earlier in itertools.takewhile(lambda other: other is not state, self.waiting):
            earlier.overtaken += 1
        self.waiting.remove(state)

    def _tokens_now(self, states: list[RequestState], budget: int) -> Sequence[int]:
        """Ops.schedule for these. LoracleError if it hands out more than there is, or more than somebody lacks."""
        missing = [len(state.tokens) - state.computed for state in states]
        tokens = self.ops.schedule(missing, budget)
        fits = len(tokens) == len(missing) and sum(tokens) <= budget
        if not (fits and all(0 <= n <= most for n, most in zip(tokens, missing, strict=True))):
            raise LoracleError(
                f"schedule returned {list(tokens)} for {missing} missing tokens and a budget of {budget}"
            )
        return tokens

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
        self.adapters.evicted.clear()
        adapters = self.adapters.acquire_all(state.request.adapters)
        state.evicted += tuple(self.adapters.evicted)
        if adapters is None:
            return False
        state.adapters = adapters
        if self.prefix_caching:
            # The last token is always computed: its logits are what the request is here for.
            keys = self._keys(state, (len(state.tokens) - 1) // self.cache.block_size)
            state.table = self.cache.match_prefix(keys)
            state.computed = len(state.table) * self.cache.block_size
            state.blocks_found = len(state.table)
            self._free_passed_blocks(state)  # or a long prefix would hold blocks that the window has passed
        try:
            [n] = self._tokens_now([state], budget)
        except LoracleError:
            self._release(state)
            raise
        if n > 0 and self._allocate(state, n):
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
        slots = tuple(slot for slot, _ in state.adapters)
        self._preempted.append(ScheduledStep(state.id, state.computed, 0, adapter_slots=slots, preempted=True))
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

    # Blocks that requests share: what a block's key is made of, and when others may find it.

    def _keys(self, state: RequestState, count: int) -> list[bytes]:
        """The prefix keys of its first `count` blocks."""
        if len(state.keys) < count:  # a digest reads a whole adapter: not for a request without a full block
            size = self.cache.block_size
            adapters = [(self.adapters.digest(slot), weight) for slot, weight in state.adapters]
            base = self.model.identity + self.model.config.rope_key(state.limit - 1)
            for i in range(len(state.keys), count):
                parent, block = state.keys[-1] if state.keys else b"", state.tokens[i * size : (i + 1) * size]
                acting = self.ops.keyed_adapters(adapters, state.starts, (i + 1) * size)
                state.keys.append(self.ops.prefix_key(parent, block, base, self.precision, acting))
        return state.keys[:count]

    def _cache_blocks(self, state: RequestState) -> None:
        """Let others match the blocks that are full now."""
        if self.prefix_caching:
            keys = self._keys(state, state.computed // self.cache.block_size)
            for block, key in zip(state.table, keys, strict=False):
                if block != NO_BLOCK:
                    self.cache.cache_block(block, key)

    # What could never be served, or would never end.

    def _check_progress(self) -> None:
        """LoracleError if the step let nobody go on though somebody could: a caller would step for ever."""
        if self.busy and not self._preempted:
            counts = f"{len(self.running)} running and {len(self.waiting)} waiting requests"
            raise LoracleError(f"nothing was scheduled for {counts}: schedule or admit lets none of them go on")

    def _check_fits(self, request: Request, prompt: int, limit: int) -> None:
        """CacheFull if the blocks that it may hold at once are more than there are."""
        size = self.cache.block_size
        most = peak_blocks(limit - 1, size, self.max_batch_tokens, self.cache.window)
        adapters = self.adapters.blocks_for(adapter for adapter, _ in request.adapters)
        if most + adapters > self.cache.num_blocks:
            beside = f", its adapters {adapters}" if adapters else ""
            raise CacheFull(
                f"a prompt of {prompt} tokens and up to {limit - prompt} new ones need {most} KV blocks of "
                f"{size} tokens{beside}; the cache has {self.cache.num_blocks}"
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
