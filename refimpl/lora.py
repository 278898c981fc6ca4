"""LoRA: a low-rank correction, chosen per token.

    y[t] += weight * scale * B (A x[t])      for each adapter that token t's request asked for

Two forms of `lora_delta`: the definition, one token at a time, and the one that runs, one adapter at a time.

             d_in                rank              d_out
           +--------+          +-------+         +--------+
    tokens |   x    |  -- A -> |  A x  | -- B -> | B A x  |
           +--------+          +-------+         +--------+

A is [rank, d_in] and B is [d_out, rank]; rank is small, 8 to 64 where d_in and d_out are thousands. Adapters of one
batch may be of any rank: no two of them meet in one product.
"""

from collections.abc import Callable

import numpy as np

from .adapter_slots import AdapterSlots
from .arrays import Array, Float, Precision, namespace, rounded
from .config import Module
from .dora import dora_delta
from .matmul import SOME_TOKENS, thin
from .plans import NO_ADAPTER, LoraMapping


def shrink(x: Array, A: Float[Array, "rank d_in"]) -> Float[Array, "tokens rank"]:
    """x A^T. Token ids stand for one-hot rows, so that for the embedding the product is a look-up of A's columns."""
    return A[:, x].T if x.dtype.kind in "iu" else x.dot(A.T) if len(x) < SOME_TOKENS else thin(x, A.T)


def expand(low: Float[Array, "tokens rank"], B: Float[Array, "d_out rank"]) -> Float[Array, "tokens d_out"]:
    """(x A^T) B^T."""
    return low.dot(B.T) if len(low) < SOME_TOKENS else thin(low, B.T)


def lora_delta_per_token(
    y: Float[Array, "tokens d_out"],
    x: Array,
    module: Module,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
) -> None:
    """The definition: y[t] += weight * scale * B (A x[t]), in place. With DoRA: dora_delta, whose weight is always 1.

    The row of a token whose ids are all -1, or whose adapters leave this module alone, is not touched. x is [tokens,
    d_in], or token ids [tokens] at the embedding."""
    resident = adapters.at(module)
    for t in range(y.shape[0]):
        for slot, weight in zip(mapping.adapter_ids[t], mapping.adapter_weights[t], strict=True):
            if slot == NO_ADAPTER or slot not in resident:
                continue
            lora = resident[slot]
            low = lora.A[:, x[t]] if x.dtype.kind in "iu" else lora.A @ x[t]
            delta = lora.B @ rounded(low, p.lora_rank)
            if lora.bias is not None:
                delta = delta + lora.bias
            delta = delta * y.dtype.type(lora.scale * weight)
            out = y[t, : delta.shape[0]]  # y may be wider: another request's adapter may extend the vocabulary
            if lora.dora is not None:
                delta = dora_delta(out, delta, lora.dora, p)
            out[:] = rounded(out + rounded(delta, p.lora_delta), p.linear)


def lora_delta(
    y: Float[Array, "tokens d_out"],
    x: Array,
    module: Module,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
    shrink: Callable[[Array, Array], Array] = shrink,
    expand: Callable[[Array, Array], Array] = expand,
) -> None:
    """The same, one segment at a time, on rows that lie side by side: shrink, expand, scale, add.

        adapter_ids      2   2  -1   0   2           rows 3, 0, 1, 4, gathered once and put back once
        segment of 0                 x               x A0^T -> [1, r0]    B0 -> [1, d_out], added to row 3
        segment of 2     x   x           x           x A2^T -> [3, r2]    B2 -> [3, d_out], added to rows 0, 1, 4

    Nothing is gathered where the batch is in the order of its adapters already, as the engine's are. The base alone
    (-1) costs nothing. On a GPU all segments are one launch: SGMV, segmented gather matrix-vector product (Punica, Chen
    et al. 2023)."""
    resident = adapters.at(module)
    if not resident:
        return
    for column in mapping.device.columns:
        x_rows, y_rows = x[column.rows], y[column.rows]
        for segment in column.segments:
            if segment.slot not in resident:
                continue
            lora = resident[segment.slot]
            delta = expand(rounded(shrink(x_rows[segment.place], lora.A), p.lora_rank), lora.B)
            if lora.bias is not None:
                delta += lora.bias
            delta *= lora.scale * segment.weight
            out = y_rows[segment.place, : delta.shape[1]]  # y may be wider: another adapter may extend the vocabulary
            if lora.dora is not None:
                delta = dora_delta(out, delta, lora.dora, p)
            out += rounded(delta, p.lora_delta)
            if p.linear != p.compute:
                out[:] = rounded(out, p.linear)
        if not isinstance(column.rows, slice):
            y[column.rows] = y_rows


def added_by(
    lora_delta: Callable[..., None],
    y: Float[Array, "tokens d_out"],
    x: Array,
    module: Module,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
) -> Float[Array, "tokens d_out"]:
    """What a form of lora_delta adds to y, which stays as it is.

    Plain LoRA adds the same to zeros, and nothing of it is lost there. What DoRA adds depends on y; where that is -inf,
    beyond the vocabulary of a row, it is 0."""
    dora = any(lora.dora is not None for lora in adapters.at(module).values())
    after = y.copy() if dora else namespace(y).zeros_like(y)
    lora_delta(after, x, module, adapters, mapping, p)
    if not dora:
        return after
    with np.errstate(invalid="ignore"):
        return rounded(namespace(y).where(after == y, 0, after - y), p.linear)
