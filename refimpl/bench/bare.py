"""The products of a step and nothing else, as NumPy's BLAS takes them in a plain loop: the limit of a step's time.

    x W^T          each linear layer of the base, all rows at once, in the form that matmul.py chooses
    (x A^T) B^T    each adapter of the batch in each layer, for its own rows, one after another

Left out is everything else: plan, norms, attention, and that a delta is scaled and added. What more adapters cost here
is what the machine takes to read and multiply them, in pieces as small as they are: from a memory that streams 20 GB/s,
pieces of 8 KB come at a third of that (benchmarks/README.md).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Precision
from ..config import EMBED, LM_HEAD, ModelConfig
from ..matmul import matmul
from ..weights import Model

Rows = Sequence[tuple[int | None, int]]  # (adapter slot, or None for the base alone; tokens) of each request in a step


def can_be_bare(config: ModelConfig) -> bool:
    """Whether every layer of this base multiplies all rows of a batch: not with experts, nor latent attention."""
    return config.moe is None and config.mla is None


def segments_of(rows: Rows) -> list[tuple[int, int, int]]:
    """Return (adapter slot, start, stop) of the rows of each adapter. Requests of one adapter are neighbours, as they
    are in an engine's step."""
    segments: list[tuple[int, int, int]] = []
    start = 0
    for slot, tokens in rows:
        stop = start + tokens
        if slot is not None and segments and segments[-1][0] == slot:
            segments[-1] = (slot, segments[-1][1], stop)
        elif slot is not None:
            segments.append((slot, start, stop))
        start = stop
    return segments


def bare_step(model: Model, slots: AdapterSlots, rows: Rows, inputs: dict[int, Array], p: Precision) -> None:
    """Take all products of one step. inputs: an x of each width that a layer reads, with rows enough.

    Where only logits need a module each request has one row; at the head adapters have none."""
    of_logits = [(slot, 1) for slot, _ in rows]
    for module in model.config.modules():
        if module == EMBED:
            continue
        weight, resident = model.linear(module).weight, slots.at(module)
        here = of_logits if model.config.for_logits_alone(module) else rows
        x = inputs[weight.shape[1]][: sum(count for _, count in here)]
        matmul(x, weight, p)
        for slot, start, stop in segments_of(here) if module != LM_HEAD else ():
            if slot in resident:
                x[start:stop].dot(resident[slot].A.T).dot(resident[slot].B.T)


def bare_seconds(
    model: Model, slots: AdapterSlots, steps: Sequence[Rows], p: Precision, timer: Callable[[], float]
) -> Iterator[float]:
    """Yield the seconds of the products of each of these steps, on this clock."""
    most, rng = max(sum(tokens for _, tokens in rows) for rows in steps), np.random.default_rng(0)
    widths = {model.config.shape(module)[1] for module in model.config.modules() if module != EMBED}
    inputs = {width: rng.standard_normal((most, width)).astype(p.compute) for width in widths}
    for rows in steps:
        start = timer()
        bare_step(model, slots, rows, inputs, p)
        yield timer() - start
