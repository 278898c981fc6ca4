"""Attention that goes wrong with right deltas: queries and keys at a wrong position, heads that are paired wrongly, or
keys and values that are not written.

Both are written as what they would add to the modules around it. A query that is turned by n places too many is R(n) q
before it is turned; a query head that reads another key head is one that stands in another's place, and whose output is
put back before o_proj. Requests of the base are hit as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ...arrays import Array, Float
from ...rope import apply_rope, rope_frequencies
from .mix_up import EXACT, Delta, Point, Source

PLACES = range(1, 17)  # that a position may be off


def attention_sources(own_delta: Delta) -> Iterator[tuple[str, Source]]:
    """Yield each with its family. own_delta: what the request's adapters add together."""
    for sign, way in ((1, "further on"), (-1, "further back")):
        words = f"its queries and keys turned as if it stood {way} in its text"
        for n in PLACES:
            yield f"turned {way}", Source(f"turned {n} {way}", words, _turned(own_delta, sign * n), "instead", 3)
    words = "zeros for its key and value, as where they are not written"
    yield "zeros for keys and values", Source("zeros for keys and values", words, _unwritten(own_delta), "instead", 3)
    words = "query head h paired with key head h mod n instead of h // group"
    yield "heads by mod", Source("heads by mod", words, _paired(own_delta), "instead", 3)


def _output(point: Point, own_delta: Delta) -> Float[Array, "tokens d_out"]:
    """All that a module makes of its input: W x + b, and the adapters' delta."""
    y = point.x @ point.weight.T
    if point.base_bias is not None:
        y = y + point.base_bias
    delta = own_delta(point)
    return y if delta is None else y + delta


def _turned(own_delta: Delta, places: int) -> Delta:
    """R(p + n) = R(p) R(n), where nothing stands between the product and the rotation."""

    def delta(point: Point) -> Array | None:
        layer, name = point.module
        rope = None if layer < 0 else point.config.kind(layer).rope
        if rope is None or rope.type == "longrope" or name not in ("q_proj", "k_proj"):
            return None
        norms = point.config.norms
        if {norms.q, norms.k} & set(point.config.norms_of(layer)):
            return None
        y, head = _output(point, own_delta), point.config.head_dim
        angle = places * rope_frequencies(rope, head, "float64")[None]
        heads = y.reshape(len(y), -1, head)
        cos, sin = (turn(angle).repeat(len(y), axis=0) for turn in (np.cos, np.sin))
        return apply_rope(heads, cos, sin, rope.interleaved, EXACT).reshape(y.shape) - y

    return delta


def _unwritten(own_delta: Delta) -> Delta:
    """A slot of a cache that nothing was written to since it was made."""

    def delta(point: Point) -> Array | None:
        return -_output(point, own_delta) if point.module[1] in ("k_proj", "v_proj") else None

    return delta


def _paired(own_delta: Delta) -> Delta:
    def delta(point: Point) -> Array | None:
        layer, name = point.module
        config = point.config
        groups, head = config.num_key_value_heads, config.head_dim
        heads = config.num_attention_heads
        if layer < 0 or name not in ("q_proj", "o_proj") or not 1 < groups < heads or heads % groups:
            return None
        order = np.arange(heads).reshape(-1, groups).T.ravel()  # place -> the head that reads its key head
        if name == "q_proj":
            y = _output(point, own_delta)
            return _in_order(y, order, head) - y if y.shape[1] == heads * head else None
        if point.x.shape[1] != heads * head:
            return None
        moved = replace(point, x=_in_order(point.x, np.argsort(order), head))
        return _output(moved, own_delta) - _output(point, own_delta)

    return delta


def _in_order(x: Array, order: Sequence[int] | Array, head: int) -> Array:
    return x.reshape(len(x), -1, head)[:, order].reshape(x.shape)
