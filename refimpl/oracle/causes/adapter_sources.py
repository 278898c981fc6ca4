"""Deltas of other adapters; and what a known bug of binding makes of the own one, with its name and its links."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array
from ...config import Module
from .mix_up import Delta, Point, Source, blended, full_delta, product, scaled


def adapter_sources(key: str | None, other: str | None, called: str) -> Iterator[Source]:
    """other: None where those words mean the base: what stands instead is nothing then, and to add that is no
    mistake."""

    def added(point: Point) -> Array | None:
        return None if other is None else point.full_delta(other)

    def instead(point: Point) -> Array | None:
        own_delta = None if key is None else point.full_delta(key)
        wrong = added(point)
        if own_delta is None or wrong is None:
            return wrong if own_delta is None else -own_delta
        return wrong - own_delta if wrong.shape == own_delta.shape else None

    def mixed(a_key: str, b_key: str, s_key: str) -> Delta:
        """Where an adapter lacks the module nothing is multiplied."""

        def delta(point: Point) -> Array | None:
            A_from, B_from, scale_from = point.of(a_key), point.of(b_key), point.of(s_key)
            own_delta = None if key is None else point.of(key)
            if own_delta is None:
                return None
            if A_from is None or B_from is None or scale_from is None:
                return -full_delta(point.x, own_delta)
            return blended(point, A_from, B_from, scale_from, own_delta)

        return delta

    def theirs(change: Callable[[LoraWeights, LoraWeights], float]) -> Callable[[Point, LoraWeights], float | None]:
        """A scale that is made of the own weights and of the other one's at the same module."""

        def scale(point: Point, lora: LoraWeights) -> float | None:
            rest = None if other is None else point.of(other)
            return None if rest is None else change(lora, rest)

        return scale

    of_scale = theirs(lambda lora, rest: rest.scale)
    at_rank = theirs(lambda lora, rest: lora.scale * len(lora.A) / len(rest.A))
    at_alpha = theirs(lambda lora, rest: rest.scale * len(rest.A) / len(lora.A))

    def stale(at_own_scale: bool) -> Delta:
        """Ranks of the other one beyond the own ones: the tail of a slot that was not cleared."""

        def delta(point: Point) -> Array | None:
            own_delta, rest = None if key is None else point.of(key), None if other is None else point.of(other)
            if own_delta is None or rest is None or rest.A.shape[0] <= own_delta.A.shape[0]:
                return None
            r = own_delta.A.shape[0]
            tail = replace(rest, A=rest.A[r:], B=rest.B[:, r:], bias=None)
            return blended(point, tail, tail, own_delta if at_own_scale else tail, None)

        return delta

    def cut(largest: bool) -> Delta:
        """Own ranks that the other one has not: at this module, or anywhere."""

        def delta(point: Point) -> Array | None:
            own_delta = None if key is None else point.of(key)
            rest = None if other is None else point.of(other)
            if own_delta is None or other is None or (rest is None and not largest):
                return None
            ranks = [one.A.shape[0] for one in point.weights[other].values()] if largest or rest is None else []
            n = max(ranks, default=0) if largest or rest is None else rest.A.shape[0]
            if not 0 < n < own_delta.A.shape[0]:
                return None
            return product(point.x, own_delta.A[n:], own_delta.B[:, n:], own_delta.scale)

        return delta

    def bias(point: Point) -> Array | None:
        """Where the own one has a module without a bias, and the other one has one."""
        own_delta, rest = None if key is None else point.of(key), None if other is None else point.of(other)
        if own_delta is None or rest is None or own_delta.bias is not None or rest.bias is None:
            return None
        return np.broadcast_to(rest.bias * rest.scale, (len(point.x), len(rest.bias)))

    def untargeted(point: Point) -> Array | None:
        """Only where the own one has nothing."""
        return None if key is None or point.of(key) is not None else added(point)

    def outside(point: Point) -> Array | None:
        """Where the other one has no module of that name, in any layer."""
        has = other is None or any(name == point.module[1] for _, name in point.weights[other])
        return None if key is None or has else point.full_delta(key)

    if other is not None:
        yield Source(f"added: {called}", f"the delta of {called}", added, "added", 2)
    yield Source(f"instead: {called}", f"the delta of {called}", instead, "instead", 2, of_other=other)
    if key is None or other is None:
        return
    words = f"the delta of {called} at modules that its own adapter leaves alone"
    yield Source(f"untargeted: {called}", words, untargeted, "added", 2.5)
    words = f"its own delta at modules that {called} leaves alone"
    yield Source(f"outside: {called}", words, outside, "own", 3)
    yield Source(f"A of {called}", f"its own delta with the A of {called}", mixed(other, key, key), "instead", 4)
    yield Source(f"B of {called}", f"its own delta with the B of {called}", mixed(key, other, key), "instead", 4)
    yield scaled(key, f"scale of {called}", f"its own delta at the scale of {called}", of_scale, 3)
    words = f"its own delta at the scale of {called}, which is 0 where that has no such module"
    yield Source(f"scale, or none, of {called}", words, mixed(key, key, other), "instead", 3.5)
    yield scaled(key, f"alpha of {called}", f"its own delta with the lora_alpha of {called}", at_alpha, 4)
    words = f"its own delta, scaled as if its rank were that of {called}"
    yield scaled(key, f"scale of the rank of {called}", words, at_rank, 4)
    words = f"the delta of {called} at its own scale"
    yield Source(f"A and B of {called}", words, mixed(other, other, key), "instead", 4)
    yield Source(f"ranks beyond those of {called}", f"its own ranks beyond those of {called}", cut(False), "part", 4)
    words = f"its own ranks beyond the largest of {called}"
    yield Source(f"ranks beyond the largest of {called}", words, cut(True), "part", 4.5)
    yield Source(f"bias of {called}", f"the bias of lora_B of {called}, where its own has none,", bias, "added", 3)
    yield Source(f"stale ranks of {called}", f"the ranks of {called} beyond its own", stale(True), "added", 4)
    words = f"the ranks of {called} beyond its own, at their own scale,"
    yield Source(f"scaled stale ranks of {called}", words, stale(False), "added", 4.5)


def step_sources(key: str | None, keys: Sequence[str | None], called: str) -> Iterator[Source]:
    """Yield the delta of an adapter that is another one for each token. keys: of each; None: nothing."""

    def instead(point: Point) -> Array | None:
        deltas = {one: point.full_delta(one) for one in {key, *keys} if one is not None}
        some = [delta for delta in deltas.values() if delta is not None]
        if not some or len({delta.shape for delta in some}) > 1:
            return None
        total = np.zeros_like(some[0])
        for one, delta in deltas.items():
            if delta is not None:
                of_this = np.array([other == one for other in keys])
                total[of_this] += delta[of_this]
        own_delta = None if key is None else deltas[key]
        return total if own_delta is None else total - own_delta

    if any(other != key for other in keys):
        yield Source(f"instead: {called}", f"the delta of {called}", instead, "instead", 2.5)


def registered(
    key: str, names: Mapping[str, str], bound: Callable[[str], Mapping[Module, LoraWeights]]
) -> Iterator[Source]:
    """Yield a source for each known bug of binding. names: what each does, by its name. bound: the adapter then."""

    def instead(name: str) -> Delta:
        def delta(point: Point) -> Array | None:
            right, other = point.of(key), bound(name).get(point.module)
            if right is None:
                return None if other is None else full_delta(point.x, other)
            if other is None:
                return -full_delta(point.x, right)
            if _is_same(right, other):
                return None
            changed, own_delta = full_delta(point.x, other), full_delta(point.x, right)
            return changed - own_delta if changed.shape == own_delta.shape else None

        return delta

    for name, what in names.items():
        yield Source(name, what, instead(name), "bug", 2)


def _is_same(one: LoraWeights, other: LoraWeights) -> bool:
    """Are they equal to the bit? A bug that does nothing here need not be computed."""
    same_bias = (one.bias is None) == (other.bias is None) and (
        one.bias is None or other.bias is None or np.array_equal(one.bias, other.bias)
    )
    same = one.scale == other.scale and np.array_equal(one.A, other.A) and np.array_equal(one.B, other.B)
    return same and same_bias
