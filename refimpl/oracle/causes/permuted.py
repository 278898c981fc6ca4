"""Deltas that are put back in the wrong order: rows of a step get those of other rows, other requests' among them.

Kernels want the rows of one adapter side by side, so that engines sort a step's rows by their adapters, and put what
comes out back where it belongs:

    row           0  1  2  3          order    2  0  3  1     rows of the base, of a, of b
    adapter       a  b  -  a          sorted   the deltas of rows 2, 0, 3, 1
    put back      out[order[i]] = sorted[i]                   what is right
                  out[i] = sorted[order[i]]                   by the permutation in place of its inverse
                  out[i] = sorted[i]                          not at all

No request can be followed alone here: what a row gets depends on what all others have become by then. So a whole batch
is computed, step by step, once for each way to sort and to put back, as long as its rows come down to noise. Which
steps an engine makes of a batch is tried as well (schedule.py).
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
from ..noise.readout import View
from ..noise.rms import rms_shown
from .mix_up import EXACT
from .relations import label
from .schedule import Step


@dataclass(frozen=True)
class Permutation:
    """How the rows of a step are sorted by their adapters, and what is done with what comes out."""

    by: str  # "in order of their first use", ...
    base: str  # where its rows are among them
    wrong: str  # "by the permutation in place of its inverse", ...
    prompts: bool = False  # are steps of decode rows alone right?

    @property
    def words(self) -> str:
        """What it does."""
        sorted_by = f"sorted by adapter ({self.by}, the base's {self.base})"
        where = " in steps with prompt tokens" if self.prompts else ""
        return f"the deltas of a step's rows, which are {sorted_by}, are put back {self.wrong}{where}"

    def of(
        self, labels: Sequence[str | None], order_of: Mapping[str, int], slots: Sequence[str | None] = ()
    ) -> Int[Array, " rows"]:
        """Return for each row the one whose delta it gets. labels: the adapters of the rows. order_of: of all adapters,
        those that there is one for. slots: the adapter in each."""
        used = list(dict.fromkeys(labels))
        if self.by == LOADED:
            used.sort(key=lambda one: (order_of.get(one or "", len(order_of)), one or ""))
        if self.by in SLOT_BY_SLOT:
            step = 1 if self.by == BY_SLOT else -1  # engines that pop a list of free slots fill the last one first
            used.sort(key=lambda one: (step * slots.index(one) if one in slots else len(slots), one or ""))
        if self.by == NAMED:
            used.sort(key=lambda one: one or "")
        codes: dict[str | None, int] = {one: i for i, one in enumerate(used)}
        if self.base != IN_TURN:
            codes[None] = -1 if self.base == FIRST else len(used)
        order = np.argsort([codes[one] for one in labels], kind="stable")
        return order[order] if self.wrong == TWICE else order


FIRST_USE, LOADED, NAMED = "in order of their first use", "as they were loaded", "by name"
BY_SLOT, FROM_LAST_SLOT = "slot by slot", "slot by slot, the one that was filled last first"
SLOT_BY_SLOT = BY_SLOT, FROM_LAST_SLOT
TWICE, NOT = "by the permutation in place of its inverse", "nowhere else"
FIRST, LAST, IN_TURN = "first", "last", "in their turn"
WAYS = tuple(
    Permutation(by, base, wrong, prompts)
    for prompts in (False, True)
    for wrong in (TWICE, NOT)
    for by in (FIRST_USE, LOADED, NAMED, *SLOT_BY_SLOT)
    for base in ((FIRST, LAST, IN_TURN) if by == FIRST_USE else (FIRST, LAST))
)


def permuted(
    exchanges: Sequence[Exchange],
    raws: Sequence[Errors | None],
    testbed: Testbed,
    limit: float,
    in_order: Sequence[Step],
    ways: Sequence[Permutation] = WAYS,
) -> Iterator[tuple[Permutation, float]]:
    """Yield each way that brings every row of a batch down to noise, and what it leaves of the worst.

    exchanges: all of one batch, none of them with DoRA. raws: their errors; None where nobody knows. limit: from which
    on a row is no noise. in_order: the steps that compute them."""
    for way in ways if in_order[0].slots else (one for one in ways if one.by not in SLOT_BY_SLOT):
        worst = 0.0
        for i, first, logits in computed(exchanges, testbed, way, in_order):
            raw = raws[i]
            if raw is not None:
                worst = max(worst, _rest(first, logits, raw))
            if not worst < limit:
                break
        else:
            yield way, worst


def _rest(first: int, logits: Float[Array, "tokens vocab"], raw: Errors) -> float:
    """What is left of the worst row of some tokens of a request, in noise units, if these are its logits."""
    start, end = max(first, raw.rows.start), min(first + len(logits), raw.rows.stop)
    if start >= end:
        return 0.0
    rows = slice(start - raw.rows.start, end - raw.rows.start)
    view = View(raw.view.values[rows], raw.view.shown[rows], raw.view.logprobs)
    change = view.of(logits[start - first : end - first, : raw.vocab]) - view.of(raw.logits[rows])
    return float((rms_shown(raw.error[rows] - change, view.shown) / raw.unit[rows]).max())


def computed(
    exchanges: Sequence[Exchange], testbed: Testbed, way: Permutation, in_order: Sequence[Step]
) -> Iterator[tuple[int, int, Float[Array, "tokens vocab"]]]:
    """Yield the requests of a batch whose deltas are put back so, step by step: which one, its first token there, and
    the logits of those that are computed."""
    model, order_of = testbed.exact, {key: i for i, key in enumerate(testbed.paths)}
    p = model.precision(EXACT)
    requests = [teacher_forced(one, testbed.wide) for one in exchanges]
    ends = [len(one.prompt_ids) for one in requests]
    cache = KVCache(model.config, sum(ends), 1, p, model.device, NUMPY.select_victim, NUMPY.latent.kv_shape)
    blocks = [cache.allocate(n) for n in ends]
    adapters = AdapterCache(model, p, NUMPY)
    slots = [[(adapters.acquire(adapter), weight) for adapter, weight in one.adapters] for one in requests]
    for step in in_order:
        scheduled = [
            ScheduledRequest(
                requests[one.request].prompt_ids[one.first : one.first + one.length],
                one.first,
                blocks[one.request][: one.first + one.length],
                slots[one.request],
                ends[one.request],
                starts_of(requests[one.request], NUMPY.activation_start),
            )
            for one in step.rows
        ]
        labels = [label(exchanges[one.request].adapters) for one in step.rows for _ in range(one.length)]
        is_wrong = not way.prompts or any(not one.is_decode for one in step.rows)
        source = way.of(labels, order_of, step.slots) if is_wrong else np.arange(len(labels))
        batch = make_batch(scheduled, cache, adapters.slots, NUMPY, every_row=True)
        ops = replace(NUMPY, lora_delta=partial(_put_back, source))
        logits = to_host(forward(model, batch, cache, adapters.slots, ops, p))
        starts = np.cumsum([0, *(one.length for one in step.rows)])
        for one, start in zip(step.rows, starts, strict=False):
            yield one.request, one.first, logits[start : start + one.length]


def _put_back(source: Int[Array, " rows"], y: Array, x: Array, *rest: Any) -> None:
    """Add to each row what its source row should have. An expert's rows are those that are sent to it."""
    if len(x) != len(source):
        NUMPY.lora_delta(y, x, *rest)
    else:
        y += added_by(NUMPY.lora_delta, y, x, *rest)[source]
