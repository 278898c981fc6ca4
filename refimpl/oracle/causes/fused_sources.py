"""The rows of a fused product in the wrong places: q, k and v are one product in an engine, and gate and up; its rows
are cut into shards, and an adapter may have some of its slices alone.

    right, two shards    q q | k | v      q q | k | v        each slice is cut
    wrong                q q   q q        k k   v v          the whole is cut: outputs of q get rows of others
    a slice is missing   q . v  ->  q v .                    what follows it is closed up
"""

from collections.abc import Callable, Iterator

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array
from .mix_up import PARTNERS, Delta, Point, Source, full_delta

SHARDS = (2, 3, 4)  # of tensor parallelism


def rows_cut_as_a_whole(widths: list[int], shards: int) -> list[tuple[Array, Array]] | None:
    """Return for each slice of a fused product of which slice, and which row there, its rows are if the whole is cut
    into shards; None if it cannot be cut."""
    if any(width % shards for width in widths):
        return None
    of_slice = np.repeat(np.arange(len(widths)), widths)
    row = np.concatenate([np.arange(width) for width in widths])
    # Where each output should be read: shard by shard, in each of them slice by slice.
    parts = [np.arange(width).reshape(shards, -1) for width in widths]
    places = [(i, part[shard]) for shard in range(shards) for i, part in enumerate(parts)]
    result = [(np.zeros(width, int), np.zeros(width, int)) for width in widths]
    at = 0
    for i, rows in places:
        here = slice(at, at + len(rows))
        result[i][0][rows], result[i][1][rows] = of_slice[here], row[here]
        at += len(rows)
    return result


def fused_sources(key: str) -> Iterator[Source]:
    """Yield each."""

    def slices(point: Point) -> tuple[tuple[str, ...], list[LoraWeights | None], list[int]] | None:
        """The names of a module's fused product, the adapter's part of each, and their widths."""
        layer, name = point.module
        names = next((some for some in PARTNERS if name in some), ())
        if layer < 0 or not names or point.module not in point.config.modules():
            return None
        widths = [point.config.shape((layer, one))[0] for one in names if (layer, one) in point.config.modules()]
        return (
            (names, [point.of(key, point.beside(one)) for one in names], widths) if len(widths) == len(names) else None
        )

    def cut_as_a_whole(shards: int, at_own_scale: bool) -> Delta:
        def delta(point: Point) -> Array | None:
            lora, fused = point.of(key), slices(point)
            if lora is None or fused is None:
                return None
            names, parts, widths = fused
            rows = rows_cut_as_a_whole(widths, shards)
            if rows is None:
                return None
            of_slice, row = rows[names.index(point.module[1])]
            low = point.x @ lora.A.T
            y = np.zeros((len(low), len(row)))
            for i, one in enumerate(parts):
                here = of_slice == i
                if one is not None and here.any():
                    r = min(low.shape[1], one.B.shape[1])
                    y[:, here] = low[:, :r] @ one.B[row[here], :r].T * (lora if at_own_scale else one).scale
            bias = 0.0 if lora.bias is None else lora.bias * lora.scale
            return y + bias - full_delta(point.x, lora)

        return delta

    def closed_up(place: Callable[[list[int], list[int]], list[tuple[int, int, int]]], shards: int = 1) -> Delta:
        """place: (widths of the slices of a shard, which are there) -> (slice that is there, its first row in the
        whole, how many of its rows are there)"""

        def delta(point: Point) -> Array | None:
            fused = slices(point)
            if fused is None:
                return None
            names, parts, widths = fused
            having = [i for i, one in enumerate(parts) if one is not None]
            if having == list(range(len(names))) or any(width % shards for width in widths):
                return None
            number, widths = names.index(point.module[1]), [width // shards for width in widths]
            start, width, count = sum(widths[:number]), widths[number], len(point.x)
            total = np.zeros((count, shards, sum(widths)))
            for i, to, rows in place(widths, having):
                if (one := parts[i]) is not None and start < to + rows and to < start + width:
                    total[:, :, to : to + rows] += full_delta(point.x, one).reshape(count, shards, -1)[:, :, :rows]
            y = total[:, :, start : start + width].reshape(count, -1)
            own_lora = parts[number]
            y = y if own_lora is None else y - full_delta(point.x, own_lora)
            return y if y.any() else None

        return delta

    def by_rows(widths: list[int], having: list[int]) -> list[tuple[int, int, int]]:
        ends = np.cumsum([0, *(widths[i] for i in having)])
        return [(i, int(end), widths[i]) for i, end in zip(having, ends, strict=False)]

    def by_places(widths: list[int], having: list[int]) -> list[tuple[int, int, int]]:
        """The slices that are there get the first places, as many rows of each as its place has."""
        return [(i, sum(widths[:n]), min(widths[i], widths[n])) for n, i in enumerate(having)]

    for n in SHARDS:
        words = f"its own delta with rows of B of a fused product that is cut into {n} shards as a whole"
        yield Source(f"cut as a whole in {n}", words, cut_as_a_whole(n, True), "instead", 5)
        yield Source(
            f"cut as a whole in {n}, scaled before", f"{words}, scaled before", cut_as_a_whole(n, False), "instead", 5.5
        )
    words = "the deltas of those slices of a fused product that its adapter has, closed up"
    yield Source("closed up by rows", words, closed_up(by_rows), "instead", 4.5)
    for n in SHARDS:
        called = f"{words} in each of {n} shards"
        yield Source(f"closed up by rows in {n}", called, closed_up(by_rows, n), "instead", 5)
    yield Source("closed up by places", f"{words} place by place", closed_up(by_places), "instead", 5)
