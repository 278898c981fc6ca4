"""The own delta with some of its ranks lost, or in another order."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array
from ...config import EMBED
from .mix_up import Delta, Point, Source, full_delta, product


def constant(n: int) -> Callable[[int], int]:
    """n, however many there are."""
    return lambda size: n


def beyond_whole(n: int) -> Callable[[int], int]:
    """Where the last whole n end."""
    return lambda size: size - size % n


def part(key: str, change: Callable[[LoraWeights], LoraWeights | None]) -> Delta:
    """The own delta with changed weights. None: this module has no such part."""

    def delta(point: Point) -> Array | None:
        lora = point.of(key)
        changed = None if lora is None or point.module == EMBED else change(lora)
        return None if changed is None else product(point.x, changed.A, changed.B, changed.scale, changed.bias)

    return delta


def instead(key: str, change: Callable[[LoraWeights], LoraWeights | None]) -> Delta:
    """What changed weights make, less the own delta."""

    def delta(point: Point) -> Array | None:
        lora = point.of(key)
        changed = None if lora is None else change(lora)
        if lora is None or changed is None:
            return None
        return product(point.x, changed.A, changed.B, changed.scale, changed.bias) - full_delta(point.x, lora)

    return delta


def rank_sources(key: str) -> Iterator[Source]:
    """Yield them, and A or B read as its transpose."""

    def cut(first: Callable[[int], int], least: int = 1) -> Callable[[LoraWeights], LoraWeights | None]:
        def change(lora: LoraWeights) -> LoraWeights | None:
            start = first(lora.A.shape[0])
            if not least <= start < lora.A.shape[0]:
                return None
            return replace(lora, A=lora.A[start:], B=lora.B[:, start:], bias=None)

        return change

    for n in (1, 2, 4, 8, 16, 32, 64):
        from_n = part(key, cut(constant(n)))
        yield Source(f"ranks from {n}", f"its own ranks from {n} on", from_n, "part", 4)
    yield Source("last rank", "its own last rank", part(key, cut(lambda r: r - 1)), "part", 4)
    yield Source("second half of ranks", "the second half of its ranks", part(key, cut(lambda r: r // 2)), "part", 4)
    for n in (4, 8, 16):
        words = f"its own ranks beyond the last whole {n}"
        yield Source(f"ranks beyond {n}s", words, part(key, cut(beyond_whole(n), 0)), "part", 4)

    def permuted(order: Callable[[int], Array]) -> Callable[[LoraWeights], LoraWeights | None]:
        def change(lora: LoraWeights) -> LoraWeights | None:
            ranks = order(lora.A.shape[0])
            return None if (ranks == np.arange(len(ranks))).all() else replace(lora, B=lora.B[:, ranks])

        return change

    orders: dict[str, Callable[[int], Array]] = {
        "reversed": lambda r: np.arange(r)[::-1],
        "rolled by one": lambda r: np.roll(np.arange(r), 1),
        "rolled back by one": lambda r: np.roll(np.arange(r), -1),
        "in interleaved order": lambda r: np.concatenate([np.arange(0, r, 2), np.arange(1, r, 2)]),
        "in de-interleaved order": lambda r: np.argsort(np.concatenate([np.arange(0, r, 2), np.arange(1, r, 2)])),
    }
    for name, order in orders.items():
        words = f"its own delta with the ranks of B {name}"
        yield Source(f"ranks {name}", words, instead(key, permuted(order)), "instead", 6)

    def reshaped(lora: LoraWeights) -> LoraWeights:
        return replace(lora, B=np.ascontiguousarray(lora.B.T).reshape(lora.B.shape))

    def reshaped_A(lora: LoraWeights) -> LoraWeights:
        return replace(lora, A=np.ascontiguousarray(lora.A.T).reshape(lora.A.shape))

    words = "its own delta with {} read as its transpose"
    yield Source("B transposed", words.format("B"), instead(key, reshaped), "instead", 5)
    yield Source("A transposed", words.format("A"), instead(key, reshaped_A), "instead", 5)
