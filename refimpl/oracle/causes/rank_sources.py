"""The own delta with some of its ranks lost, or in another order."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array
from ...config import EMBED
from .mix_up import PARTNERS, Delta, Point, Source, full_delta, product, scaled
from .padding import BUCKETS, padded


def constant(n: int) -> Callable[[int], int]:
    """n, however many there are."""
    return lambda size: n


def beyond_whole(n: int) -> Callable[[int], int]:
    """Where the last whole n end."""
    return lambda size: size - size % n


def part(key: str, change: Callable[[LoraWeights], LoraWeights | None], of_embedding: bool = True) -> Delta:
    """The own delta with changed weights. None: this module has no such part. of_embedding: has that one?"""

    def delta(point: Point) -> Array | None:
        lora = point.of(key)
        changed = None if lora is None or (point.module == EMBED and not of_embedding) else change(lora)
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


def in_8_bits(name: str, axis: int | None) -> Callable[[LoraWeights], LoraWeights | None]:
    """Round A or B to whole parts of its largest number, or of each row's or column's: 127 of them either way."""

    def change(lora: LoraWeights) -> LoraWeights | None:
        weight = lora.A if name == "A" else lora.B
        unit = np.abs(weight).max(axis=axis, keepdims=True) / 127
        rounded = np.round(weight / np.where(unit, unit, 1.0)) * unit
        return replace(lora, A=rounded) if name == "A" else replace(lora, B=rounded)

    return change


def rescaled(lora: LoraWeights, r: int, by_root: bool) -> float:
    """The scale that the same alpha makes for another rank. by_root: alpha / sqrt(r), as rsLoRA has it."""
    ratio = lora.A.shape[0] / r
    return lora.scale * (ratio**0.5 if by_root else ratio)


def rank_sources(key: str, by_root: bool = False) -> Iterator[Source]:
    """Yield them, and A or B read as its transpose. by_root: has the adapter rsLoRA?"""

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

    def some(of: Callable[[int], slice]) -> Callable[[LoraWeights], LoraWeights | None]:
        def change(lora: LoraWeights) -> LoraWeights | None:
            ranks = of(lora.A.shape[0])
            return replace(lora, A=lora.A[ranks], B=lora.B[:, ranks], bias=None) if lora.A.shape[0] > 1 else None

        return change

    parts: dict[str, Callable[[int], slice]] = {
        "its own first rank": lambda r: slice(0, 1),
        "the first half of its ranks": lambda r: slice(0, r // 2),
        "every second of its ranks": lambda r: slice(1, None, 2),
    }
    for words, of in parts.items():
        yield Source(words, words, part(key, some(of)), "part", 4.5)

    def first(n: int, scaled: bool) -> Callable[[LoraWeights], LoraWeights | None]:
        def change(lora: LoraWeights) -> LoraWeights | None:
            if lora.A.shape[0] <= n and not scaled:
                return None
            scale = rescaled(lora, min(n, lora.A.shape[0]) if not scaled else n, by_root)
            return replace(lora, A=lora.A[:n], B=lora.B[:, :n], scale=scale)

        return change

    for n in (1, 2, 4, 8, 16, 32, 64):
        words = f"its own first {n} ranks alone, scaled as if it had no more"
        yield Source(f"only ranks before {n}", words, instead(key, first(n, False)), "instead", 5)
        words = f"its own delta, cut and scaled to the rank {n} whatever it has"
        yield Source(f"as rank {n}", words, instead(key, first(n, True)), "instead", 5.5)
    yield from fused_rank_sources(key, by_root)

    def at_rank(of: Callable[[int], int]) -> Callable[[Point, LoraWeights], float]:
        return lambda _, lora: rescaled(lora, of(lora.A.shape[0]), by_root)

    for n in (1, 2, 4, 8, 16, 32, 64):
        words = f"its own delta, scaled as if its rank were {n}"
        yield scaled(key, f"scale of rank {n}", words, at_rank(constant(n)), 5)
    for n in (4, 8, 16, 32):
        words = f"its own delta, scaled as if its rank were padded to whole {n}s"
        yield scaled(key, f"scale of padded {n}s", words, at_rank(padded(n)), 4.5)
    for bucket, rank in BUCKETS.items():
        words = f"its own delta, scaled as if its rank were padded to {bucket}"
        yield scaled(key, f"scale of {bucket}", words, at_rank(rank), 4.5)
    if by_root:
        words = "its own delta, scaled with the whole part of the root of its rank"
        yield scaled(key, "whole root", words, at_rank(lambda r: math.isqrt(r) ** 2), 4.5)
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

    for axis, per in ((None, "the whole matrix"), (1, "each row"), (0, "each column")):
        for name in ("A", "B"):
            words = f"its own delta with {name} rounded to 8 bits, by one scale for {per}"
            yield Source(f"{name} in 8 bits for {per}", words, instead(key, in_8_bits(name, axis)), "instead", 6)
    words = "its own delta with {} read as its transpose"
    yield Source("B transposed", words.format("B"), instead(key, reshaped), "instead", 5)
    yield Source("A transposed", words.format("A"), instead(key, reshaped_A), "instead", 5)


def fused_rank_sources(key: str, by_root: bool) -> Iterator[Source]:
    """Yield what a module gets that is treated as if it had the rank of another one: one of those that engines fuse
    with it, the first of the adapter, that of the largest rank."""
    others: dict[str, Callable[[Point], LoraWeights | None]] = {
        "its first module": lambda point: next(iter(point.weights[key].values())),
        "its module of the largest rank": lambda point: max(
            point.weights[key].values(), key=lambda one: one.A.shape[0]
        ),
        "its module of the smallest rank": lambda point: min(
            point.weights[key].values(), key=lambda one: one.A.shape[0]
        ),
    }

    def beside(names: tuple[str, ...], name: str) -> Callable[[Point], LoraWeights | None]:
        return lambda point: point.of(key, point.beside(name)) if point.module[1] in names else None

    others |= {name: beside(names, name) for names in PARTNERS for name in names}

    def none_of(names: tuple[str, ...], name: str) -> Delta:
        """All but the bias, beside a module that is not there."""

        def delta(point: Point) -> Array | None:
            own_lora = point.of(key)
            if own_lora is None or point.module[1] not in names or point.of(key, point.beside(name)) is not None:
                return None
            return full_delta(point.x, replace(own_lora, bias=None))

        return delta

    def none_of_first(point: Point) -> Array | None:
        first = {names: names[0] for names in PARTNERS if point.module[1] in names}
        return next((none_of(names, name)(point) for names, name in first.items()), None)

    words = "its own delta, but for the bias of lora_B, where its adapter leaves the first of those fused with it alone"
    yield Source("beside no first one", words, none_of_first, "part", 4)
    for names in PARTNERS:
        for name in names:
            words = f"its own delta, but for the bias of lora_B, where its adapter leaves {name} alone"
            yield Source(f"beside no {name}", words, none_of(names, name), "part", 4.5)

    def both(of: Callable[[Point], LoraWeights | None], change: Callable[[LoraWeights, LoraWeights], Delta]) -> Delta:
        def delta(point: Point) -> Array | None:
            own_lora = point.of(key)
            other = None if own_lora is None else of(point)
            return None if own_lora is None or other is None else change(own_lora, other)(point)

        return delta

    def at_rank_of(of: Callable[[Point], LoraWeights | None]) -> Callable[[Point, LoraWeights], float | None]:
        def scale(point: Point, lora: LoraWeights) -> float | None:
            other = of(point)
            return None if other is None else rescaled(lora, other.A.shape[0], by_root)

        return scale

    def lost(lora: LoraWeights, other: LoraWeights) -> Delta:
        n = other.A.shape[0]
        return part(key, lambda one: replace(one, A=one.A[n:], B=one.B[:, n:], bias=None) if n < len(one.A) else None)

    def stale(lora: LoraWeights, other: LoraWeights) -> Delta:
        r, (d_out, d_in) = lora.A.shape[0], (lora.B.shape[0], lora.A.shape[1])
        if other.A.shape[0] <= r or other.B.shape[0] < d_out or other.A.shape[1] != d_in:
            return lambda point: None
        tail = replace(other, A=other.A[r:], B=other.B[:d_out, r:], scale=lora.scale, bias=None)
        return part(key, lambda one: tail)

    for words, of in others.items():
        yield Source(
            f"ranks beyond those of {words}", f"its own ranks beyond those of {words}", both(of, lost), "part", 4.5
        )
        words_of_scale = f"its own delta, scaled as if its rank were that of {words}"
        yield scaled(key, f"scale of the rank of {words}", words_of_scale, at_rank_of(of), 4)
        yield Source(f"stale ranks of {words}", f"the ranks of {words} beyond its own", both(of, stale), "added", 4.5)
