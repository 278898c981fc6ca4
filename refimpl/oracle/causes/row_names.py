"""Which request of a step a mistake's adapter is of, by where its row stands there: the first row, the row before, the
first of a kernel's tile.

    step   a a a b b c        "the row before in its step": c reads b's adapter
"""

from collections.abc import Iterator

import numpy as np

from ...arrays import Array

TILES = (4, 8, 16, 32)  # rows that a kernel takes together


def by_row(step: Array, request: Array, decode: Array, part: Array, slots: Array) -> Iterator[tuple[str, Array]]:
    """Yield for each name which request it means at each row, -1 the base. Of each part of a request in a step are
    given its step, its request, whether it is a decode step, and the slot of its adapter, -1: none; of each row its
    its part."""
    begun = np.full(1 + request.max(), step[-1])
    np.minimum.at(begun, request, step)
    yield from _among(step, request, part, slots, begun[request], "in its step")
    phase = step * 2 + decode
    parts, rows = np.argsort(phase, kind="stable"), np.argsort(phase[part], kind="stable")  # prompts first in each step
    part_of = np.repeat(np.arange(len(parts)), np.bincount(part)[parts])

    def placed(owners: Array) -> Array:
        return owners[np.argsort(rows)]

    for words, owners in _among(
        phase[parts],
        request[parts],
        part_of,
        slots[parts],
        begun[request[parts]],
        "among the rows of its phase in its step",
    ):
        yield words, placed(owners)
    yield "the row at its place if prompts come first, in its step", request[part][rows]
    last = step * 2 + (1 - decode)
    yield (
        "the row at its place if decode rows come first, in its step",
        request[part][np.argsort(last[part], kind="stable")],
    )
    of_row, owner = phase[part][rows], request[part][rows]
    prompts = of_row // 2 * 2
    at = np.searchsorted(of_row, prompts) + np.arange(len(rows)) - np.searchsorted(of_row, of_row)
    at = np.minimum(at, len(rows) - 1)
    yield "the prompt token at its place in its step", placed(np.where(of_row[at] == prompts, owner[at], -1))


def _among(
    group: Array, request: Array, part: Array, slots: Array, begun: Array, where: str
) -> Iterator[tuple[str, Array]]:
    """Yield the names that go by where a row stands in its group. Of each part of a request are given its group, the
    parts of one side by side and the least first, its request, its slot and the step that this began in; of each row
    its part."""
    owner, row, number = request[part], np.arange(len(part)), np.arange(len(group))
    first, last = _ends(group[part])
    yield f"the first row {where}", owner[first]
    yield f"the last row {where}", owner[last]
    yield f"the row before {where}", owner[np.where(row > first, row - 1, last)]
    yield f"the row after {where}", owner[np.where(row < last, row + 1, first)]
    begins, ends = _ends(group)
    yield f"the request before {where}", request[np.where(number > begins, number - 1, ends)][part]
    yield f"the request after {where}", request[np.where(number < ends, number + 1, begins)][part]
    order = np.lexsort((row, slots[part], group[part]))  # in each group the base first, then slot by slot
    place = np.argsort(order)
    yield f"the row at its place if rows are sorted by adapter, {where}", owner[order]
    as_begun = np.lexsort((row, owner, begun[part], group[part]))  # of those that began together, as they came
    yield f"the row at its place if requests stand in the order in which they began, {where}", owner[as_begun]
    before, after = np.where(place > first, place - 1, last), np.where(place < last, place + 1, first)
    for which, beside in (("before", before), ("after", after)):
        yield f"the row {which} if rows are sorted by adapter, {where}", owner[order[beside]]
    for n in TILES:
        yield f"the first row of each {n} {where}", owner[first + (row - first) // n * n]
        yield f"the row at its place in the first {n} {where}", owner[first + (row - first) % n]
        tile = order[first + (place - first) // n * n]
        yield f"the first row of each {n} if rows are sorted by adapter, {where}", owner[tile]
    of_base = np.bincount(group[part], slots[part] < 0).astype(int)[group[part]]  # rows, before all others there
    for n in TILES:
        tile = first + of_base + (place - first - of_base) // n * n
        words = f"the first row of each {n} with adapters if these are sorted by adapter, {where}"
        yield words, np.where(slots[part] >= 0, owner[order[np.clip(tile, 0, len(row) - 1)]], -1)
    base_last = np.where(slots[part] >= 0, slots[part], 1 + slots.max())
    came = np.where(slots[part] >= 0, row, len(row))
    begins_at = np.unique(first)
    of_first = np.minimum.reduceat(came, begins_at)[np.searchsorted(begins_at, first)]
    yield f"the first adapter {where}", np.where(of_first < len(row), owner[np.minimum(of_first, len(row) - 1)], -1)
    for which, at in (("lowest", np.lexsort((row, base_last, group[part]))[first]), ("highest", order[last])):
        yield f"the adapter of the {which} slot {where}", np.where(slots[part][at] >= 0, owner[at], -1)


def _ends(group: Array) -> tuple[Array, Array]:
    """Where the first and the last of each one's group are. group: numbers, the least first."""
    return np.searchsorted(group, group, "left"), np.searchsorted(group, group, "right") - 1
