"""The own delta with some of its outputs or inputs lost, or in another order: slices, heads, layouts."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array
from ...config import EMBED
from .mix_up import Delta, Point, Source, full_delta
from .rank_sources import beyond_whole, constant, instead, part


def row_sources(key: str) -> Iterator[Source]:
    """Yield them: slices of outputs and inputs, then other orders of either."""

    def rows(first: Callable[[int], int], stop: Callable[[int], int]) -> Callable[[LoraWeights], LoraWeights | None]:
        def change(lora: LoraWeights) -> LoraWeights | None:
            d_out = lora.B.shape[0]
            start, end = first(d_out), stop(d_out)
            if not 0 <= start < end <= d_out or end - start == d_out:
                return None
            B, bias = np.zeros_like(lora.B), None if lora.bias is None else np.zeros_like(lora.bias)
            B[start:end] = lora.B[start:end]
            if bias is not None and lora.bias is not None:
                bias[start:end] = lora.bias[start:end]
            return replace(lora, B=B, bias=bias)

        return change

    def inputs(first: Callable[[int], int], stop: Callable[[int], int]) -> Callable[[LoraWeights], LoraWeights | None]:
        def change(lora: LoraWeights) -> LoraWeights | None:
            d_in = lora.A.shape[1]
            start, end = first(d_in), stop(d_in)
            if not 0 <= start < end <= d_in or end - start == d_in:
                return None
            A = np.zeros_like(lora.A)
            A[:, start:end] = lora.A[:, start:end]
            return replace(lora, A=A, bias=None)

        return change

    ranges: dict[str, tuple[Callable[[int], int], Callable[[int], int]]] = {
        "the first half": (lambda size: 0, lambda size: size // 2),
        "the second half": (lambda size: size // 2, lambda size: size),
        "the last quarter": (lambda size: size - size // 4, lambda size: size),
        "the first": (lambda size: 0, lambda size: 1),
        "the last": (lambda size: size - 1, lambda size: size),
    }
    for n in (16, 24, 32, 48, 64, 96, 128):
        ranges[f"those from {n} on"] = (constant(n), lambda size: size)
        ranges[f"those beyond the last whole {n}"] = (beyond_whole(n), lambda size: size)
    for name, (first, stop) in ranges.items():
        yield Source(
            f"rows: {name}", f"its own delta in {name} of the outputs", part(key, rows(first, stop)), "part", 5
        )
        words = f"what its own delta makes of {name} of the inputs"
        of_inputs = part(key, inputs(first, stop), of_embedding=False)  # those are token ids
        yield Source(f"inputs: {name}", words, of_inputs, "part", 5)
    yield from order_sources(key)
    yield from head_sources(key)


def head_sources(key: str) -> Iterator[Source]:
    """Yield the part of the own delta in some heads, of outputs that are whole heads."""

    def heads(first: int, stop: int | None) -> Delta:
        def delta(point: Point) -> Array | None:
            lora, head = point.of(key), point.config.head_dim
            if lora is None or point.module[1] not in ("q_proj", "k_proj", "v_proj") or lora.B.shape[0] <= head:
                return None
            chosen = np.zeros(lora.B.shape[0] // head, bool)
            chosen[first:stop] = True
            return None if chosen.all() else full_delta(point.x, lora) * np.repeat(chosen, head)

        return delta

    parts = {
        "the first head": heads(0, 1),
        "the last head": heads(-1, None),
        "the last two heads": heads(-2, None),
        "every head but the first": heads(1, None),
    }
    for name, delta in parts.items():
        yield Source(f"heads: {name}", f"its own delta in {name}", delta, "part", 5)


def _interleaved(head: int) -> Array:
    return np.concatenate([np.arange(0, head, 2), np.arange(1, head, 2)])


# What an output, or an input, gets: index[i] is where it comes from. Some are of any width, some of an even one, some
# of whole heads.
ANY: dict[str, Callable[[Array], Array]] = {
    "rolled by one": lambda index: np.roll(index, 1),
    "rolled back by one": lambda index: np.roll(index, -1),
    "reversed": lambda index: index[::-1],
}
EVEN: dict[str, Callable[[Array], Array]] = {
    "halves swapped": lambda index: np.roll(index, len(index) // 2),
    "first half repeated": lambda index: index % (len(index) // 2),
    "second half repeated": lambda index: len(index) // 2 + index % (len(index) // 2),
    "neighbours swapped": lambda index: index ^ 1,
    "in interleaved order": lambda index: _interleaved(len(index)),
    "in de-interleaved order": lambda index: np.argsort(_interleaved(len(index))),
}
ONE_HEAD: dict[str, Callable[[Array], Array]] = {  # [heads, head]
    "each head's halves interleaved": lambda heads: heads[:, _interleaved(heads.shape[1])],
    "each head's pairs split": lambda heads: heads[:, np.argsort(_interleaved(heads.shape[1]))],
}
HEADS: dict[str, Callable[[Array], Array]] = {  # of more than one
    "rolled by one head": lambda heads: np.roll(heads, 1, axis=0),
    "rolled back by one head": lambda heads: np.roll(heads, -1, axis=0),
    "first head repeated": lambda heads: np.repeat(heads[:1], len(heads), axis=0),
    "heads reversed": lambda heads: heads[::-1],
    "heads and channels exchanged": lambda heads: heads.T,
    "channels and heads exchanged": lambda heads: np.arange(heads.size).reshape(heads.shape[1], -1).T,
}
GROUPS: dict[str, Callable[[Array], Array]] = {  # [key heads, query heads of each, head]
    "the heads of each group apart": lambda heads: heads.transpose(1, 0, 2),
    "the heads of a group together": lambda heads: heads.reshape(heads.shape[1], heads.shape[0], -1).transpose(1, 0, 2),
}


def order_of(name: str, width: int, head: int, groups: int = 1) -> Array | None:
    """Return where each of `width` channels comes from in this order; None if there is no such order of so many.

    groups: of query heads, each of which shares a key head."""
    index = np.arange(width)
    if name in GROUPS:
        count = width // (head * groups)
        if groups < 2 or count < 2 or width != head * groups * count:
            return None
        return GROUPS[name](index.reshape(groups, count, head)).reshape(-1)
    if name in ANY:
        return ANY[name](index)
    if name in EVEN:
        return EVEN[name](index) if width % 2 == 0 else None
    if width % head or (name in HEADS and width <= head):
        return None
    order = (ONE_HEAD | HEADS)[name]
    return order(index.reshape(-1, head)).reshape(-1)


def _heads(point: Point) -> tuple[int, int]:
    """The size of a head, and into how many groups query heads fall: those of other modules into none."""
    is_of_queries = point.module[1] in ("q_proj", "o_proj")
    return point.config.head_dim, point.config.num_key_value_heads if is_of_queries else 1


def order_sources(key: str) -> Iterator[Source]:
    """Yield the own delta with its outputs, or its inputs, in another order."""

    def outputs(name: str) -> Delta:
        def delta(point: Point) -> Array | None:
            lora = point.of(key)
            order = None if lora is None else order_of(name, lora.B.shape[0], *_heads(point))
            if lora is None or order is None:
                return None
            own_delta = full_delta(point.x, lora)
            return own_delta[:, order] - own_delta

        return delta

    def inputs(name: str) -> Delta:
        def delta(point: Point) -> Array | None:
            lora = point.of(key)
            if lora is None or point.module == EMBED:
                return None
            order = order_of(name, lora.A.shape[1], *_heads(point))
            return None if order is None else full_delta(point.x[:, order], lora) - full_delta(point.x, lora)

        return delta

    def columns(name: str) -> Delta:
        def change(lora: LoraWeights) -> LoraWeights | None:
            order = order_of(name, lora.A.shape[1], 1)
            return None if order is None else replace(lora, A=lora.A[:, order])

        return instead(key, change)

    for name in ("first half repeated", "second half repeated"):  # other orders are those of the inputs, turned round
        words = f"its own delta with the columns of A, the {name}"
        yield Source(f"columns of A, {name}", words, columns(name), "instead", 6)
    for name in (*ANY, *EVEN, *ONE_HEAD, *HEADS, *GROUPS):
        yield Source(f"outputs {name}", f"its own delta with its outputs {name}", outputs(name), "instead", 6)
        yield Source(f"inputs {name}", f"its own delta of inputs {name}", inputs(name), "instead", 6)
