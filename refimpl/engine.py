"""Continuous batching: requests come and go, and every step is one batch of whatever is there.

Prefill, chunked prefill and decode are one path. A generation has tokens of which the first `computed` are in the
cache; a step computes some more of each, and whoever has all of them computed gets one token sampled.
"""

import collections
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from .adapter_cache import AdapterCache
from .arrays import Array, Precision, to_host
from .attention import first_visible
from .batch import ScheduledRequest, make_batch
from .errors import CacheFull, RequestError
from .kv_cache import NO_BLOCK, KVCache
from .model import forward, logit_width
from .ops import NUMPY, Ops
from .plans import Batch
from .request import Request, check_request
from .sampler import sample
from .weights import Model


@dataclass(frozen=True)
class Token:
    """One produced token. `finish_reason` is set on a request's last one: "stop" or "length"."""

    request_id: int
    token_id: int
    text: str = ""
    finish_reason: str | None = None


@dataclass(frozen=True)
class Output:
    """What one request produced. A stop id that ended it is the last of `token_ids`, and not part of `text`."""

    token_ids: list[int]
    text: str
    finish_reason: str


@dataclass(eq=False)
class RequestState:
    """One request on its way."""

    id: int
    request: Request
    tokens: list[int]  # the prompt and what was produced so far
    limit: int  # length at which it ends
    computed: int = 0  # how many of the tokens are in the cache
    table: list[int] = field(default_factory=list)  # its blocks; NO_BLOCK where the sliding window has passed
    adapters: Sequence[tuple[int, float]] = ()
    keys: list[bytes] = field(default_factory=list)  # prefix keys of its full blocks

    @property
    def produced(self) -> int:
        """Tokens produced so far."""
        return len(self.tokens) - len(self.request.prompt_ids)


class Engine:
    """Serves requests with any mix of adapters from one base, one cache and one bank.

    First come, first served; when blocks run out the youngest is preempted and computed again later. Nothing of that,
    and nothing that its neighbours do, changes what a request gets."""

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
        self.model, self.ops = model, ops
        self.precision = precision or Precision(ops.precision, model.dtype)
        self.cache = KVCache(model.config, num_blocks, block_size, self.precision, model.device, ops.select_victim)
        self.adapters = AdapterCache(model, self.precision, ops, max_adapters)
        self.max_batch_tokens, self.max_running, self.prefix_caching = max_batch_tokens, max_running, prefix_caching
        self.waiting: collections.deque[RequestState] = collections.deque()
        self.running: list[RequestState] = []  # oldest first
        self.preemptions = 0
        self._ids = itertools.count()

    def add(self, request: Request, max_new_tokens: int = 16) -> int:
        """Queue a request; its id. RequestError or CacheFull if it could never be served, however long it waited."""
        check_request(request, self.model.config)
        prompt = [int(i) for i in request.prompt_ids]
        wanted = max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        if wanted < 1:
            raise RequestError(f"max_new_tokens {wanted} must be 1 or more")
        limit = min(len(prompt) + wanted, self.model.config.max_position_embeddings + 1)
        self._check_fits(request, len(prompt), limit)
        g = RequestState(next(self._ids), request, prompt, limit)
        self.waiting.append(g)
        return g.id

    def cancel(self, request_id: int) -> None:
        """Forget a request and free what it holds. One that has finished already is no mistake."""
        for g in [g for g in self.running if g.id == request_id]:
            self._drop(g)
        self.waiting = collections.deque(g for g in self.waiting if g.id != request_id)

    @property
    def busy(self) -> bool:
        """Is anything waiting or running?"""
        return bool(self.waiting or self.running)

    def step(self) -> list[Token]:
        """One batch; the tokens that it produced. None while prompts are only computed in part, or nothing is there."""
        scheduled = self._schedule()
        if not scheduled:
            return []
        # Requests of one adapter side by side: their rows are then one slice of the batch, not a gather (Punica).
        scheduled.sort(key=lambda share: [slot for slot, _ in share[0].adapters])
        tokens = []
        for row, (g, n) in zip(self._last_rows(scheduled), scheduled, strict=True):
            g.computed += n
            self._publish(g)
            if g.computed == len(g.tokens):
                token = self._choose(row[: logit_width(g.request, self.model)], g)
                g.tokens.append(token)
                reason = self._finished(g)
                tokens.append(Token(g.id, token, finish_reason=reason))
                if reason:
                    self._drop(g)
        return sorted(tokens, key=lambda token: token.request_id)

    # Scheduling: who computes how many tokens in this step.

    def _schedule(self) -> list[tuple[RequestState, int]]:
        scheduled, budget, preempted = [], self.max_batch_tokens, False
        for g in list(self.running):
            n = min(len(g.tokens) - g.computed, budget)
            if g not in self.running or n == 0:  # preempted by an older one just now, or no room in this batch
                continue
            self._slide(g)
            while not self._grow(g, n):
                youngest = self.running[-1]
                self._preempt(youngest)
                preempted = True
                if youngest is g:
                    break
            else:
                scheduled.append((g, n))
                budget -= n
        while self.waiting and budget > 0 and len(self.running) < self.max_running and not preempted:
            g = self.waiting[0]
            if not self._admit(g, budget):
                break  # strictly in order, so that nobody starves
            self.waiting.popleft()
            self.running.append(g)
            n = min(len(g.tokens) - g.computed, budget)
            scheduled.append((g, n))
            budget -= n
        return scheduled

    def _admit(self, g: RequestState, budget: int) -> bool:
        """Adapters, whatever prefix is cached, and blocks for the first chunk: all of it or nothing."""
        adapters = self.adapters.acquire_all(g.request.adapters)
        if adapters is None:
            return False
        g.adapters = adapters
        if self.prefix_caching:
            # The last token is always computed: its logits are what the request is here for.
            g.table = self.cache.match_prefix(self._keys(g, (len(g.tokens) - 1) // self.cache.block_size))
            g.computed = len(g.table) * self.cache.block_size
            self._slide(g)  # or a long prefix would hold blocks that the window has passed, and never fit
        if self._grow(g, min(len(g.tokens) - g.computed, budget)):
            return True
        self._release(g)
        return False

    def _grow(self, g: RequestState, n: int) -> bool:
        """Room for n more tokens."""
        wanted = -(-(g.computed + n) // self.cache.block_size) - len(g.table)
        if wanted > self.cache.available:
            return False
        g.table += self.cache.allocate(wanted) if wanted > 0 else []
        return True

    def _slide(self, g: RequestState) -> None:
        """Give back the blocks that no token to come can see."""
        past = first_visible(g.computed, self.model.config.sliding_window) // self.cache.block_size
        self.cache.free(g.table[:past])
        g.table[:past] = [NO_BLOCK] * past

    def _preempt(self, g: RequestState) -> None:
        """Back to the head of the queue; its tokens, the produced ones too, will be computed again."""
        self.running.remove(g)
        self._release(g)
        self.waiting.appendleft(g)
        self.preemptions += 1

    def _drop(self, g: RequestState) -> None:
        self.running.remove(g)
        self._release(g)

    def _release(self, g: RequestState) -> None:
        self.cache.free(g.table)
        for slot, _ in g.adapters:
            self.adapters.release(slot)
        g.table, g.adapters, g.computed = [], (), 0

    # One step's plan, its numbers, and what is kept of it. The oracle's engine overrides these two to look at every row
    # and to force tokens (refimpl/engines/ours.py).

    def _last_rows(self, scheduled: list[tuple[RequestState, int]]) -> Array:
        """The logits of each one's last token."""
        batch = self._batch(scheduled)
        return to_host(forward(self.model, batch, self.cache, self.adapters.slots, self.ops, self.precision))

    def _choose(self, row: Array, g: RequestState) -> int:
        """The next token of g."""
        return sample(row, g.request, g.produced)

    def _batch(self, scheduled: list[tuple[RequestState, int]]) -> Batch:
        work = [
            ScheduledRequest(g.tokens[g.computed : g.computed + n], g.computed, g.table, g.adapters)
            for g, n in scheduled
        ]
        return make_batch(work, self.cache, self.adapters.slots, self.ops)

    def _keys(self, g: RequestState, count: int) -> list[bytes]:
        """The prefix keys of its first `count` blocks."""
        size = self.cache.block_size
        adapters = [(self.adapters.digest(slot), weight) for slot, weight in g.adapters]
        for i in range(len(g.keys), count):
            parent, block = g.keys[-1] if g.keys else b"", g.tokens[i * size : (i + 1) * size]
            g.keys.append(self.ops.prefix_key(parent, block, self.model.identity, self.precision, adapters))
        return g.keys[:count]

    def _publish(self, g: RequestState) -> None:
        """Let others find the blocks that are full now."""
        if self.prefix_caching:
            for block, key in zip(g.table, self._keys(g, g.computed // self.cache.block_size), strict=False):
                if block != NO_BLOCK:
                    self.cache.cache_block(block, key)

    def _finished(self, g: RequestState) -> str | None:
        stops = self.model.config.eos_token_ids if g.request.stop_ids is None else g.request.stop_ids
        return "stop" if g.tokens[-1] in stops else "length" if len(g.tokens) >= g.limit else None

    def _check_fits(self, request: Request, prompt: int, limit: int) -> None:
        size, window = self.cache.block_size, self.model.config.sliding_window
        held = limit if window is None else min(limit, window + self.max_batch_tokens + size)
        if -(-held // size) > self.cache.num_blocks:
            raise CacheFull(
                f"a prompt of {prompt} tokens and up to {limit - prompt} new ones need {-(-held // size)} KV blocks of "
                f"{size} tokens; the cache has {self.cache.num_blocks}"
            )
        capacity = self.adapters.capacity
        if capacity is not None and len(request.adapters) > capacity:
            raise RequestError(f"a request sums {len(request.adapters)} adapters; the adapter cache holds {capacity}")
