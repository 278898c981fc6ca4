"""One request, token by token, in the exact forward pass: the next token is computed once for each of many mistakes.

A row of logits that is right says that its token was computed right, and those before it. So the first wrong row names
the token in which the mistake is, and that token's batch is small: copies of one token behind one prefix, each copy
with a mistake of its own. They share the prefix's blocks; of block size 1, so that each copy's own key and value are a
block that the next token may stand behind.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...adapter_cache import AdapterCache
from ...adapter_slots import AdapterSlots
from ...alora import starts_of
from ...arrays import Array, Float, Precision, to_host
from ...batch import ScheduledRequest, make_batch
from ...config import Module
from ...kv_cache import KVCache
from ...model import forward
from ...ops import NUMPY, Ops
from ...plans import LoraMapping
from ..noise.readout import View
from ..noise.rms import rms
from .bound import bound_weights, saved_layers
from .mix_up import CHANGES, EXACT, NOBODY, Point, Source
from .reported import computed_last
from .row_views import Rows, Turns
from .single_tokens import attention_of_single_tokens
from .suspect import Suspect
from .watch import Watch

MEMORY = 1 << 27  # bytes of keys and values; larger: more copies in one pass, little is saved
NUMBERS = 1 << 25  # logits of one pass; larger: more memory
AT_ONCE = 2048  # rows of one pass, at most; larger: more memory, little is saved


@dataclass(frozen=True, eq=False)
class Copy:
    """Some tokens of the request, computed behind others whose keys and values are there, or are computed in the same
    pass. One row each."""

    start: int
    before: Sequence[int]  # the blocks of the tokens before
    blocks: Sequence[int]  # its own, one for each token


@dataclass(frozen=True, eq=False)
class Term:
    """A mix-up in some rows of a pass: c times its delta is added, at each row's modules."""

    source: Source
    rows: Array  # int [k]
    at: Array  # bool [k, modules]
    coefficients: Float[Array, " k"]


class Walk:
    """One request with a cache, in which each of its tokens may have been computed in several ways."""

    def __init__(self, suspect: Suspect) -> None:
        self.suspect, self.raw = suspect, suspect.raw
        model, request = suspect.testbed.exact, suspect.request
        self.tokens, self.first_shown = len(request.prompt_ids), suspect.raw.rows.start
        computed = computed_last(suspect.exchange.response.steps, self.tokens)
        self.cached = computed[0].first if computed else 0  # first tokens that were found in a cache, if that is told
        self.modules = list(model.config.modules())
        self._index = {module: i for i, module in enumerate(self.modules)}
        self._precision = model.precision(EXACT)
        self._adapters = AdapterCache(model, self._precision, NUMPY)
        self._slots = [(self._adapters.acquire(adapter), weight) for adapter, weight in request.adapters]
        self._starts = starts_of(request, NUMPY.activation_start)
        one = self._new_cache(1)
        of_block = sum(layer.nbytes for layers in (one.k, one.v) for layer in layers)
        rows = min(AT_ONCE, MEMORY // max(of_block, 1), NUMBERS // model.config.vocab_size)
        self.at_once = max(4 * self.tokens, rows)
        self.flops = 2 * sum(model.linear(module).weight.size for module in self.modules)  # of one token
        self._cache = self._new_cache(3 * self.at_once)
        testbed = suspect.testbed
        self._weights, self._saved = bound_weights(testbed), saved_layers(testbed)

    def _new_cache(self, blocks: int) -> KVCache:
        model = self.suspect.testbed.exact
        return KVCache(
            model.config, blocks, 1, self._precision, model.device, NUMPY.select_victim, NUMPY.latent.kv_shape
        )

    def new_blocks(self, count: int, used: set[int]) -> list[int]:
        """Return blocks that are not in use."""
        free = (block for block in range(self._cache.num_blocks) if block not in used)
        return list(itertools.islice(free, count))

    def residuals(self, tokens: Array, logits: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
        """How far the engine's rows of these tokens are from the given ones, scaled so that the rms is in noise units;
        0 where it shows none."""
        shown = (tokens >= self.first_shown) & (tokens < self.first_shown + len(self.raw.unit))
        at = np.where(shown, tokens - self.first_shown, 0)
        view = View(self.raw.view.values[at], self.raw.view.shown[at], self.raw.view.logprobs)
        change = view.of(logits[:, : self.raw.vocab]) - view.of(self.raw.logits[at])
        counted = view.shown & shown[:, None]
        scale = np.sqrt(self.raw.vocab / np.maximum(view.shown.sum(axis=1), 1)) / self.raw.unit[at]
        return np.where(counted, self.raw.error[at] - change, 0.0) * scale[:, None]

    def ratios(self, tokens: Array, logits: Float[Array, "rows vocab"]) -> Float[Array, " rows"]:
        """The rms of the same."""
        return rms(self.residuals(tokens, logits), axis=1)

    def same(self, logits: Float[Array, "rows vocab"], blocks: Sequence[int]) -> list[bytes]:
        """Return what is equal for rows that have the very same logits, key and value."""
        at = np.array(blocks)
        parts = [logits]
        parts += [layer[at].reshape(len(at), -1) for layers in (self._cache.k, self._cache.v) for layer in layers]
        return [hashlib.sha256(row.tobytes()).digest() for row in np.concatenate(parts, axis=1)]

    def at(self, modules: str) -> Array:
        """Which modules are in a region, by its words."""
        return next(region.members for region in self.suspect.all_regions if region.words == modules)

    def compute(
        self, copies: Sequence[Copy], terms: Sequence[Term], into: Sequence[int] | None = None
    ) -> Float[Array, "rows vocab"]:
        """Compute all copies in one pass, with these terms added.

        into: other blocks, to which their keys and values are written, or none; they read those that lie in their own
        blocks then."""
        request, model = self.suspect.request, self.suspect.testbed.exact
        scheduled = [
            ScheduledRequest(
                request.prompt_ids[one.start : one.start + len(one.blocks)],
                one.start,
                [*one.before, *one.blocks],
                self._slots,
                self.tokens,
                self._starts,
            )
            for one in copies
        ]
        tokens = np.concatenate([one.start + np.arange(len(one.blocks)) for one in copies])
        batch = make_batch(scheduled, self._cache, self._adapters.slots, NUMPY, every_row=True)
        ops = self._with(terms, tokens)
        if into is not None:
            ops = replace(ops, write_kv=partial(_write, into))
        return to_host(forward(model, batch, self._cache, self._adapters.slots, ops, self._precision))

    def _with(self, terms: Sequence[Term], tokens: Array) -> Ops:
        """Return the backend in which these terms are added. What is done to the own delta is done to what stands
        instead of it: another adapter comes first, and what scales a delta last."""
        ordered = sorted(terms, key=lambda term: (term.source.of_other is None, term.source.scales))
        at_modules = np.array([term.at.any(axis=0) for term in ordered]).reshape(len(ordered), len(self.modules))
        watch = Watch(len(tokens))
        watched = watch.over(NUMPY)

        def lora_delta(
            y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
        ) -> None:
            watched.lora_delta(y, x, module, adapters, mapping, p)
            if len(x) != len(tokens) or module not in self._index:  # an expert's rows are those that are sent to it
                return
            number, wrong, stands = self._index[module], None, dict[str, Array]()
            # An expert's input has a row for each token that is sent to it: of the batch's rows it has not all.
            inputs = {what: given for what, given in watch.layers[module[0]].items() if len(given) == len(x)}
            for i in np.flatnonzero(at_modules[:, number]):
                term = ordered[i]
                here = term.at[:, number]
                rows, other = term.rows[here], term.source.of_other
                given = module, x, inputs, tokens, rows, {} if other is not None else stands
                delta = self._in_rows(term.source.delta, *given)
                if other is not None:
                    stands.setdefault(other, np.zeros(len(x), bool))[rows] = True
                if delta is None:
                    continue
                width = delta.shape[1]
                excess = self._in_rows(term.source.excess, *given) if term.source.scales and wrong is not None else None
                if excess is not None and wrong is not None:
                    delta = delta + excess * wrong[rows, :width]
                change = term.coefficients[here][:, None] * delta
                y[rows, :width] += change
                if term.source.kind in CHANGES and other is None:
                    wrong = np.zeros(y.shape) if wrong is None else wrong
                    wrong[rows, :width] += change

        return replace(watched, lora_delta=lora_delta, attention=attention_of_single_tokens)

    def _in_rows(
        self,
        of: Callable[[Point], Array | None],
        module: Module,
        x: Array,
        inputs: Mapping[str, Array],
        tokens: Array,
        rows: Array,
        stands: Mapping[str, Array],
    ) -> Array | None:
        """Return what is computed of each of some rows, [rows, columns]; None: nothing. stands: in which rows another
        adapter stands for the own one."""
        own_key, result = self.suspect.key or NOBODY, None
        apart = {other: chosen[rows] for other, chosen in stands.items() if chosen[rows].any()}
        if not apart:
            return of(self._point(module, x[rows], Rows(inputs, rows), tokens[rows]))
        as_own = ~np.any([*apart.values()], axis=0)
        for other, chosen in ((None, as_own), *apart.items()):
            some = rows[chosen]
            if not len(some):
                continue
            point = self._point(module, x[some], Rows(inputs, some), tokens[some])
            value = of(point if other is None else point.as_if(own_key, other))
            if value is not None and chosen.all():
                return value
            if value is not None:
                result = np.zeros((len(rows), value.shape[1])) if result is None else result
                result[chosen] = value
        return result

    def _point(self, module: Module, x: Array, inputs: Mapping[str, Array], tokens: Array) -> Point:
        """A module with what some rows gave it."""
        exact = self.suspect.testbed.exact
        turns = Turns(self.suspect.turns, tokens)
        base = exact.linear(module)
        return Point(module, x, exact.config, self._weights, self._saved, turns, base.weight, inputs, base.bias)


def _write(into: Sequence[int], k_cache: Array, v_cache: Array, k: Array, v: Array, *_: Any) -> None:
    """Write keys and values to these blocks, if there are any."""
    if into:
        k_cache[np.array(into), 0], v_cache[np.array(into), 0] = k, v
