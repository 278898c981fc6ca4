"""The own delta with some of its outputs or inputs lost, or in another order: slices, heads, layouts."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array
from ...config import EMBED
from .mix_up import Delta, Point, Source, full_delta
from .rank_sources import beyond_whole, constant, part


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
    for n in (16, 32, 64, 128):
        ranges[f"those from {n} on"] = (constant(n), lambda size: size)
        ranges[f"those beyond the last whole {n}"] = (beyond_whole(n), lambda size: size)
    for name, (first, stop) in ranges.items():
        yield Source(
            f"rows: {name}", f"its own delta in {name} of the outputs", part(key, rows(first, stop)), "part", 5
        )
        words = f"what its own delta makes of {name} of the inputs"
        yield Source(f"inputs: {name}", words, part(key, inputs(first, stop)), "part", 5)
    yield from order_sources(key)


def order_sources(key: str) -> Iterator[Source]:
    """The own delta with its outputs, or its inputs, in another order."""

    def order_of(name: str, width: int, head: int) -> Array | None:
        index = np.arange(width)
        whole_heads = width % head == 0 and width > head
        if name == "rolled by one":
            return np.roll(index, 1)
        if name == "rolled back by one":
            return np.roll(index, -1)
        if name == "reversed":
            return index[::-1]
        if name == "halves swapped":
            return np.roll(index, width // 2) if width % 2 == 0 else None
        if name == "rolled by one head":
            return np.roll(index, head) if whole_heads else None
        if name == "rolled back by one head":
            return np.roll(index, -head) if whole_heads else None
        if name == "first half repeated":
            return index % (width // 2) if width % 2 == 0 else None
        if name == "first head repeated":
            return index % head if whole_heads else None
        if name == "each head's halves interleaved" and width % head == 0:
            pairs = np.concatenate([np.arange(0, head, 2), np.arange(1, head, 2)])
            return (index.reshape(-1, head)[:, pairs]).reshape(-1)
        if name == "each head's pairs split" and width % head == 0:
            pairs = np.argsort(np.concatenate([np.arange(0, head, 2), np.arange(1, head, 2)]))
            return (index.reshape(-1, head)[:, pairs]).reshape(-1)
        if name == "heads and channels exchanged" and whole_heads:
            return index.reshape(-1, head).T.reshape(-1)
        if name == "channels and heads exchanged" and whole_heads:
            return index.reshape(head, -1).T.reshape(-1)
        return None

    def outputs(name: str) -> Delta:
        def delta(point: Point) -> Array | None:
            lora = point.of(key)
            order = None if lora is None else order_of(name, lora.B.shape[0], point.config.head_dim)
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
            order = order_of(name, lora.A.shape[1], point.config.head_dim)
            return None if order is None else full_delta(point.x[:, order], lora) - full_delta(point.x, lora)

        return delta

    names = (
        "rolled by one",
        "rolled back by one",
        "reversed",
        "halves swapped",
        "rolled by one head",
        "rolled back by one head",
        "first half repeated",
        "first head repeated",
        "each head's halves interleaved",
        "each head's pairs split",
        "heads and channels exchanged",
        "channels and heads exchanged",
    )
    for name in names:
        yield Source(f"outputs {name}", f"its own delta with its outputs {name}", outputs(name), "instead", 6)
        yield Source(f"inputs {name}", f"its own delta of inputs {name}", inputs(name), "instead", 6)
