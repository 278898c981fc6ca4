"""Deltas that are put back in the wrong order: rows of a step get those of other rows, other requests' among them.

Kernels want the rows of one adapter side by side, so that engines sort a step's rows by their adapters, and put what
comes out back where it belongs:

    row           0  1  2  3          order    2  0  3  1     rows of the base, of a, of b
    adapter       a  b  -  a          sorted   the deltas of rows 2, 0, 3, 1
    put back      out[order[i]] = sorted[i]                   what is right
                  out[i] = sorted[order[i]]                   by the permutation in place of its inverse
                  out[i] = sorted[i]                          not at all

No request can be followed alone here: what a row gets depends on what all others have become by then. So a whole batch
is computed, step by step, once for each way to sort and to put back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...adapter_cache import AdapterCache
from ...alora import starts_of
from ...arrays import Array, Float, Int, to_host
from ...batch import ScheduledRequest, make_batch
from ...kv_cache import KVCache
from ...lora import added_by
from ...model import forward
from ...ops import NUMPY
from ..cases.case import Exchange, teacher_forced
from ..cases.testbed import Testbed
from ..noise.measure import Errors
from .mix_up import EXACT
from .relations import label
from .suspect import worst_ratio


@dataclass(frozen=True)
class Permutation:
    """How the rows of a step are sorted by their adapters, and what is done with what comes out."""

    by: str  # "in order of their first use", ...
    base: str  # where its rows are among them
    wrong: str  # "by the permutation in place of its inverse", ...

    @property
    def words(self) -> str:
        """What it does."""
        sorted_by = f"sorted by adapter ({self.by}, the base's {self.base})"
        return f"the deltas of a step's rows, which are {sorted_by}, are put back {self.wrong}"

    def of(self, labels: Sequence[str | None], order_of: Mapping[str, int]) -> Int[Array, " rows"]:
        """Return for each row the one whose delta it gets. labels: the adapters of the rows. order_of: of all adapters,
        those that there is one for."""
        used = list(dict.fromkeys(labels))
        if self.by == LOADED:
            used.sort(key=lambda one: (order_of.get(one or "", len(order_of)), one or ""))
        if self.by == NAMED:
            used.sort(key=lambda one: one or "")
        codes: dict[str | None, int] = {one: i for i, one in enumerate(used)}
        if self.base != IN_TURN:
            codes[None] = -1 if self.base == FIRST else len(used)
        order = np.argsort([codes[one] for one in labels], kind="stable")
        return order[order] if self.wrong == TWICE else order


FIRST_USE, LOADED, NAMED = "in order of their first use", "as they were loaded", "by name"
TWICE, NOT = "by the permutation in place of its inverse", "nowhere else"
FIRST, LAST, IN_TURN = "first", "last", "in their turn"
WAYS = tuple(
    Permutation(by, base, wrong)
    for wrong in (TWICE, NOT)
    for by in (FIRST_USE, LOADED, NAMED)
    for base in ((FIRST, LAST, IN_TURN) if by == FIRST_USE else (FIRST, LAST))
)


def permuted(
    exchanges: Sequence[Exchange], raws: Sequence[Errors | None], testbed: Testbed, limit: float
) -> Iterator[tuple[Permutation, float]]:
    """Yield each way that brings every row of a batch down to noise, and what it leaves of the worst.

    exchanges: all of one batch, none of them with DoRA, whose prompts are computed in one step, and its decode steps
    together. raws: their errors; None where nobody knows. limit: from which on a row is no noise."""
    order_of = {key: i for i, key in enumerate(testbed.paths)}
    for way in WAYS:
        logits = logits_of(exchanges, testbed, way, order_of)
        ratios = [_rest(rows, raw) for rows, raw in zip(logits, raws, strict=True) if raw is not None]
        if ratios and max(ratios) < limit:
            yield way, max(ratios)


def _rest(rows: Float[Array, "tokens vocab"], raw: Errors) -> float:
    """What is left of the worst row of a request, in noise units, if these are its logits."""
    change = raw.view.of(rows[raw.rows, : raw.vocab]) - raw.view.of(raw.logits)
    return worst_ratio(raw.error - change, raw)


def logits_of(
    exchanges: Sequence[Exchange], testbed: Testbed, way: Permutation, order_of: Mapping[str, int]
) -> list[Float[Array, "tokens vocab"]]:
    """Return the logits of each request of a batch whose deltas are put back so."""
    model = testbed.exact
    p = model.precision(EXACT)
    requests = [teacher_forced(one, testbed.wide) for one in exchanges]
    prompts, ends = [len(one.request.prompt_ids) for one in exchanges], [len(one.prompt_ids) for one in requests]
    cache = KVCache(model.config, sum(ends), 1, p, model.device, NUMPY.select_victim, NUMPY.latent.kv_shape)
    blocks = [cache.allocate(n) for n in ends]
    adapters = AdapterCache(model, p, NUMPY)
    slots = [[(adapters.acquire(adapter), weight) for adapter, weight in one.adapters] for one in requests]
    rows: list[list[Array]] = [[] for _ in requests]
    begun = [0] * len(requests)
    while alive := [i for i, end in enumerate(ends) if begun[i] < end]:
        next_begun = [prompts[i] if begun[i] == 0 else begun[i] + 1 for i in range(len(requests))]
        scheduled = [
            ScheduledRequest(
                requests[i].prompt_ids[begun[i] : next_begun[i]],
                begun[i],
                blocks[i][: next_begun[i]],
                slots[i],
                ends[i],
                starts_of(requests[i], NUMPY.activation_start),
            )
            for i in alive
        ]
        lengths = [len(one.token_ids) for one in scheduled]
        labels = [label(exchanges[i].adapters) for i, n in zip(alive, lengths, strict=True) for _ in range(n)]
        ops = replace(NUMPY, lora_delta=partial(_put_back, way.of(labels, order_of)))
        batch = make_batch(scheduled, cache, adapters.slots, NUMPY, every_row=True)
        of_step = to_host(forward(model, batch, cache, adapters.slots, ops, p))
        for i, some in zip(alive, np.split(of_step, np.cumsum(lengths)[:-1]), strict=True):
            rows[i].append(some)
        begun = next_begun
    return [np.concatenate(some) for some in rows]


def _put_back(source: Int[Array, " rows"], y: Array, x: Array, *rest: Any) -> None:
    """Add to each row what its source row should have. An expert's rows are those that are sent to it."""
    if len(x) != len(source):
        NUMPY.lora_delta(y, x, *rest)
    else:
        y += added_by(NUMPY.lora_delta, y, x, *rest)[source]
