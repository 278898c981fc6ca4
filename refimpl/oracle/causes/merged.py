"""Adapters that an engine merged into the base's weights for a batch of theirs alone, and did not take out again.

    batch      made-1, made-1     made-1, made-2     made-3     made-2
    merged     made-1                                made-3
    added      nothing            made-1             made-1     made-1 and made-3

Merging costs nothing per token, so engines do it where all requests of a batch want one adapter (PEFT's merge_adapter);
what is left of it is added to every request that comes later, to those of the base as well.
"""

from collections.abc import Iterator, Mapping, Sequence

from ...adapter import Adapter
from ...arrays import Array
from ...config import EMBED, LM_HEAD
from .mix_up import Delta, Point, Source
from .schedule import Batch

COST = 4.0  # bits


def merged_sources(earlier: Sequence[Batch], adapters: Mapping[str, Adapter]) -> Iterator[Source]:
    """Yield what may be left of merged adapters. earlier: the batches of the same engine before a request's own."""
    # Sums run by themselves.
    single = [[one.adapters for one in batch if _is_single(one.adapters)] for batch in earlier]
    alike = [some[0][0][0] for some in single if len(set(some)) == 1 and some[0]]
    alone = [some[0][0][0] for some, batch in zip(single, earlier, strict=True) if len(batch) == 1 and some and some[0]]
    named = dict[tuple[str, ...], str]()
    merged = {"batch of one adapter alone": alike, "request that was alone in its batch": alone}
    for called, keys in merged.items():
        named.setdefault(tuple(keys), called)
    for called, keys in merged.items():
        linear = tuple(key for key in keys if _is_linear(adapters[key]))
        named.setdefault(linear, f"{called}, if that has neither biases nor tables")
    for some, called in named.items():
        for which, of_these in (("each", some), ("the last", some[-1:])):
            if of_these:
                words = f"the delta of the adapter of {which} earlier {called}{',' if ',' in called else ''}"
                yield Source(f"merged: of {which} {called}", words, _sum(of_these), "added", COST)


def _is_single(adapters: Sequence[tuple[str, float]]) -> bool:
    return not adapters or (len(adapters) == 1 and adapters[0][1] == 1)


def _is_linear(adapter: Adapter) -> bool:
    """Are there only products, as some engines want it of what they merge?"""
    tables = {EMBED, LM_HEAD} & set(adapter.lora)
    return not tables and all(lora.bias is None for lora in adapter.lora.values())


def _sum(keys: Sequence[str]) -> Delta:
    def delta(point: Point) -> Array | None:
        deltas = [of_one for key in keys if (of_one := point.full_delta(key)) is not None]
        deltas = [one for one in deltas if one.shape == deltas[0].shape]  # a grown vocabulary is no sum of two
        return sum(deltas[1:], deltas[0].copy()) if deltas else None

    return delta
