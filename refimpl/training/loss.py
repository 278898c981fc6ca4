"""One micro-batch of all tasks -> each task's loss, and the gradients of its adapter.

The tasks' sequences stand one after the other in one flat batch, as requests do when they are served. Each row of the
logits has a weight, 1 / (targets of its task in this step), so that one backward pass of the sum of all losses gives
each adapter the gradient of its own mean: no other task's row depends on its parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Float, Int, ceil_div, namespace
from ..batch import ScheduledRequest, make_batch
from ..kv_cache import KVCache
from ..model import forward as serve
from ..ops import Ops
from ..plans import Batch
from .backward import Pass, backward, forward
from .dropout import Dropout
from .examples import Example
from .gradient_ops import GradientOps
from .lora_gradients import Gradients
from .trainable import check_trainable

BLOCK_SIZE = 16


@dataclass(frozen=True, eq=False)
class Share:
    """What one task brings to a micro-batch: sequences for the adapter in its slot."""

    slot: int
    examples: Sequence[Example]
    weight: float  # of each of its targets in the loss
    dropout: float = 0.0
    stream: tuple[int, ...] = ()  # seeds its dropout masks


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """The plan of a micro-batch. A sequence's last token is only a target: what it says is not learned."""

    batch: Batch
    cache: KVCache
    targets: Int[Array, " rows"]
    weights: Float[Array, " rows"]
    edges: list[int]  # share i owns rows edges[i] to edges[i + 1]


def training_batch(shares: Sequence[Share], adapters: AdapterSlots, ops: Ops, layers: int = 1) -> TrainingBatch:
    """The plan of these shares, with a cache of so many layers; logits only where a target comes next."""
    model, p = adapters.model, adapters.precision
    check_trainable(model.config)
    sequences = [(share, example) for share in shares for example in share.examples]
    lengths = [len(example.token_ids) - 1 for _, example in sequences]
    masks = [np.asarray(example.loss_mask, bool)[1:] for _, example in sequences]
    targets = [
        np.asarray(example.token_ids, np.int32)[1:][mask] for (_, example), mask in zip(sequences, masks, strict=True)
    ]
    weights = [np.full(example.targets, share.weight) for share, example in sequences]
    blocks = [ceil_div(n, BLOCK_SIZE) for n in lengths]
    config = replace(model.config, num_hidden_layers=layers)
    cache = KVCache(config, sum(blocks), BLOCK_SIZE, p, model.device)
    scheduled = [
        ScheduledRequest(
            example.token_ids[:-1], 0, cache.allocate(n), [(share.slot, 1.0)], limit=len(example.token_ids)
        )
        for (share, example), n in zip(sequences, blocks, strict=True)
    ]
    rows = np.flatnonzero(np.concatenate(masks)).astype(np.int32)
    batch = make_batch(scheduled, cache, adapters, replace(ops, logits_indices=lambda starts, every_row: rows))
    counts = [sum(example.targets for example in share.examples) for share in shares]
    xp = namespace(model.norm)
    return TrainingBatch(
        batch,
        cache,
        xp.asarray(np.concatenate(targets)),
        xp.asarray(np.concatenate(weights).astype(p.compute)),
        [0, *np.cumsum(counts).tolist()],
    )


def losses_and_gradients(
    shares: Sequence[Share], adapters: AdapterSlots, ops: Ops, gradient_ops: GradientOps, recompute: bool = False
) -> tuple[list[float], Gradients]:
    """Return the loss of each share, weighted, and the gradients of their sum by slot."""
    plan = training_batch(shares, adapters, ops)
    rates = {share.slot: share.dropout for share in shares if share.dropout}
    streams = {share.slot: share.stream for share in shares}
    dropout = Dropout(adapters.model.config, rates, streams, keep=not recompute)
    run = Pass(adapters.model, plan.batch, plan.cache, adapters, dropout, ops, gradient_ops, adapters.precision)
    logits, kept = forward(run, recompute)
    losses, dlogits = gradient_ops.cross_entropy(logits, plan.targets, plan.weights)
    return _by_share(losses, plan), backward(run, dlogits, kept)


def losses_of(shares: Sequence[Share], adapters: AdapterSlots, ops: Ops, gradient_ops: GradientOps) -> list[float]:
    """Return the loss of each share, weighted: the forward pass that serves, without dropout."""
    plan = training_batch(shares, adapters, ops, adapters.model.config.num_hidden_layers)
    logits = serve(adapters.model, plan.batch, plan.cache, adapters, ops, adapters.precision)
    return _by_share(gradient_ops.cross_entropy(logits, plan.targets, plan.weights)[0], plan)


def _by_share(losses: Float[Array, " rows"], plan: TrainingBatch) -> list[float]:
    return [float(losses[start:stop].sum()) for start, stop in zip(plan.edges, plan.edges[1:], strict=False)]
