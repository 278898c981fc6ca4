"""What the adapters that were in a slot before left there, where the slot is not cleared when another one moves in.

Each tensor of a slot is that of the last occupant that had one there, so that it may be of another adapter at each
module. Who was in it depends on how many slots an engine has; here they are given away as most engines do it: a free
one first, then that of the adapter that was used least recently (vLLM's LRU cache of adapters, lora/model_manager.py).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array
from .history import History
from .mix_up import Delta, Point, Source, blended, scaled
from .padding import BUCKETS, padded
from .slots import Slots

Whose = Callable[[Point], LoraWeights | None]  # whose weights count at a module
ENDS = {"whole 8s": padded(8), "whole 16s": padded(16), **BUCKETS}  # the ranks that a kernel takes
COUNTS = (1, 2, 3, 4, 5, 6, 8)  # slots of an engine


def occupants(used: Sequence[str | None], slots: int) -> tuple[str, ...]:
    """Return which adapters moved into the slot of the one that was used last, one after another, itself last.

    used: the adapters of all requests in order, None: the base; not empty, and the last of them an adapter."""
    of_engine = Slots(slots)
    for key in used:
        if key is not None:
            of_engine.move_in(key, set())
    own_key = next(key for key in reversed(used) if key is not None)
    return of_engine.history[of_engine.keys.index(own_key)]


def occupants_of(past: History, adapters: Sequence[tuple[str, float]]) -> dict[int, tuple[str, ...]]:
    """Return which adapters moved into the slot of a request's adapter, by the number of slots that an engine has; none
    for the base or a sum. past: what came before the request."""
    used = [*past.used, *(key for key, _ in adapters)]
    return {slots: occupants(used, slots) for slots in COUNTS} if len(adapters) == 1 else {}


def slot_sources(key: str, occupants_of: Mapping[int, Sequence[str]]) -> Iterator[Source]:
    """Yield what may be left of them. occupants_of: those of its slot, one after another, if there are so many."""
    for slots, history in occupants_of.items():
        if set(history) - {key}:
            yield from left_behind(key, history, f"{slots} in all", len(occupants_of) == 1)


def left_behind(key: str, history: Sequence[str], called: str, is_known: bool = True) -> Iterator[Source]:
    """Yield what may be left of a slot's occupants, one after another. called: what is said of the slots. is_known: is
    it known how many there are? Otherwise it is tried for many, and with fewer sources."""
    former = tuple(dict.fromkeys(one for one in reversed(history) if one != key))
    had = f"the last adapter that had one there, of those in its slot ({called}) before"
    words = f"the delta of {had}, at modules that its own adapter leaves alone,"
    yield Source(f"in its slot ({called})", words, _whole_delta(key, former), "added", 3)
    words = f"the bias of lora_B of {had}, where its own has none,"
    yield Source(f"bias in its slot ({called})", words, _bias(key, former), "added", 3)
    ranks = f"the ranks beyond its own of adapters that were in its slot ({called}) before"
    yield Source(f"ranks in its slot ({called})", ranks, _ranks(key, former, True), "added", 3)
    words = f"{ranks}, at their own scale,"
    yield Source(f"scaled ranks in its slot ({called})", words, _ranks(key, former, False), "added", 4)
    words = f"{ranks}, since one had no such module,"  # which clears it
    yield Source(f"ranks in its slot ({called}), since", words, _ranks(key, former, True, since=True), "added", 3.5)
    for upto, end in ENDS.items() if is_known else ():
        words, cut = f"{ranks}, up to {upto},", _ranks(key, former, True, end)
        yield Source(f"ranks in its slot ({called}), up to {upto}", words, cut, "added", 4)
    scale = f"its own delta at the scale of the {{}} adapter that had one there, of those in its slot ({called})"
    for which, whose in (
        ("last", _first_of(former)),
        ("first", _first_of(history)),
        ("first since", _first_since(history)),
    ):
        words = scale.format(which.replace(" since", "")) + ", since one had none" * ("since" in which)
        yield scaled(key, f"scale in its slot, {which} ({called})", words, _scale(whose), 3.5)


def _whole_delta(key: str, former: Sequence[str]) -> Delta:
    def delta(point: Point) -> Array | None:
        deltas = (point.full_delta(one) for one in former) if point.of(key) is None else iter(())
        return next((one for one in deltas if one is not None), None)

    return delta


def _bias(key: str, former: Sequence[str]) -> Delta:
    def delta(point: Point) -> Array | None:
        own_lora = point.of(key)
        if own_lora is not None and own_lora.bias is not None:
            return None
        some = (point.of(one) for one in former)
        last = next((one for one in some if one is not None and one.bias is not None), None)
        return None if last is None or last.bias is None else np.tile(last.bias * last.scale, (len(point.x), 1))

    return delta


def _first_of(some: Sequence[str]) -> Whose:
    def whose(point: Point) -> LoraWeights | None:
        return next((lora for one in some if (lora := point.of(one)) is not None), None)

    return whose


def _first_since(history: Sequence[str]) -> Whose:
    def whose(point: Point) -> LoraWeights | None:
        some = itertools.takewhile(lambda lora: lora is not None, (point.of(one) for one in reversed(history)))
        return next(iter([*some][::-1]), None)

    return whose


def _scale(whose: Whose) -> Callable[[Point, LoraWeights], float | None]:
    """A table of scales that is not written when another adapter moves in."""

    def scale(point: Point, lora: LoraWeights) -> float | None:
        other = whose(point)
        return None if other is None else other.scale

    return scale


def _ranks(
    key: str, former: Sequence[str], at_own_scale: bool, end: Callable[[int], int] | None = None, since: bool = False
) -> Delta:
    """Each of them left the ranks that nobody since has had. end: up to which rank one of a rank is multiplied; None:
    up to the last of them. since: does one without the module leave nothing there?"""

    def delta(point: Point) -> Array | None:
        own_lora, total = point.of(key), None
        if own_lora is None:
            return None
        r = own_lora.A.shape[0]
        most = None if end is None else end(r)
        for one in (point.of(name) for name in former):
            if one is None and since:
                break
            if one is None or one.A.shape[0] <= r:
                continue
            tail: LoraWeights = replace(one, A=one.A[r:most], B=one.B[:, r:most], bias=None)
            beyond = blended(point, tail, tail, own_lora if at_own_scale else tail, None)
            r = one.A.shape[0]
            if beyond is not None:
                total = beyond if total is None else total + beyond
        return total

    return delta
