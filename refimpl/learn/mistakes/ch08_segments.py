"""Wrong segments: each was seen in an engine, or is easy to write."""

import itertools
from collections.abc import Sequence

from ...arrays import Array
from ..exercise import Attempt, Mistake

Plan = tuple[list[int], list[int]]  # rows and starts
NONE = -1


def tokens_of(adapter_ids: Array) -> dict[int, list[int]]:
    """The tokens of each adapter, in the order of the adapters; -1 comes first, if somebody has none."""
    ids = [int(adapter_id) for adapter_id in adapter_ids]
    return {adapter: [t for t, other in enumerate(ids) if other == adapter] for adapter in sorted(set(ids))}


def cut(runs: Sequence[Sequence[int]], size: int) -> Plan:
    """One run of tokens after the other, each cut into parts of `size`."""
    rows: list[int] = []
    starts = [0]
    for run in runs:
        for i in range(0, len(run), size):
            rows += run[i : i + size]
            starts.append(len(rows))
    return rows, starts


def right(adapter_ids: Array, size: int) -> Plan:
    return cut([run for adapter, run in tokens_of(adapter_ids).items() if adapter != NONE], size)


def across_adapters(adapter_ids: Array, size: int) -> Plan:
    return cut([right(adapter_ids, size)[0]], size)


def none_kept(adapter_ids: Array, size: int) -> Plan:
    return cut(list(tokens_of(adapter_ids).values()), size)


def zero_is_none(adapter_ids: Array, size: int) -> Plan:
    return cut([run for adapter, run in tokens_of(adapter_ids).items() if adapter > 0], size)


def not_sorted(adapter_ids: Array, size: int) -> Plan:
    runs: list[list[int]] = []
    before = NONE
    for t, adapter in enumerate(adapter_ids):
        if adapter != NONE:
            if adapter != before:
                runs.append([])
            runs[-1].append(t)
        before = adapter
    return cut(runs, size)


def counted_from_the_beginning(adapter_ids: Array, size: int) -> Plan:
    rows, whole_runs = never_cut(adapter_ids, size)
    return rows, sorted({*whole_runs, *range(0, len(rows), size)})


def never_cut(adapter_ids: Array, size: int) -> Plan:
    return right(adapter_ids, len(adapter_ids))


def one_token_each(adapter_ids: Array, size: int) -> Plan:
    return right(adapter_ids, 1)


def rest_lost(adapter_ids: Array, size: int) -> Plan:
    runs = [run for adapter, run in tokens_of(adapter_ids).items() if adapter != NONE]
    return cut([run[: len(run) // size * size] for run in runs], size)


def end_missing(adapter_ids: Array, size: int) -> Plan:
    rows, starts = right(adapter_ids, size)
    return rows, starts[:-1]


def begin_missing(adapter_ids: Array, size: int) -> Plan:
    rows, starts = right(adapter_ids, size)
    return rows, starts[1:]


def lengths_for_starts(adapter_ids: Array, size: int) -> Plan:
    rows, starts = right(adapter_ids, size)
    return rows, [stop - start for start, stop in itertools.pairwise(starts)]


def adapters_for_rows(adapter_ids: Array, size: int) -> Plan:
    rows, starts = right(adapter_ids, size)
    return [int(adapter_ids[t]) for t in rows], starts


def last_token_first(adapter_ids: Array, size: int) -> Plan:
    return cut([run[::-1] for adapter, run in tokens_of(adapter_ids).items() if adapter != NONE], size)


def filled_up(adapter_ids: Array, size: int) -> Plan:
    runs = [run for adapter, run in tokens_of(adapter_ids).items() if adapter != NONE]
    return cut([run + run[-1:] * (-len(run) % size) for run in runs], size)


def edges_of_the_unsorted(adapter_ids: Array, size: int) -> Plan:
    rows, _ = right(adapter_ids, size)
    return rows, not_sorted(adapter_ids, size)[1]


LOST = ("https://github.com/sgl-project/sglang/pull/28371",)
WRONG_EDGES = ("https://github.com/predibase/lorax/pull/475",)


def mistake(function: Attempt, says: str, links: tuple[str, ...] = ()) -> Mistake:
    return Mistake(function.__name__, says, function, links)


MISTAKES = (
    mistake(
        across_adapters,
        "a segment is multiplied by one adapter, that of its first token: it ends where the next adapter begins.",
    ),
    mistake(
        none_kept,
        "a token without an adapter is in no segment: -1 is not an adapter, and as an index it is the last one.",
        ("https://github.com/vllm-project/vllm/pull/48421",),
    ),
    mistake(zero_is_none, "0 is an adapter like any other, although Python takes it for False."),
    mistake(
        not_sorted,
        "tokens of one adapter that are not neighbours end in different segments, and each one reads it again.",
        ("https://github.com/sgl-project/sglang/pull/20582",),
    ),
    mistake(never_cut, "a block has room for `size` tokens, and no more."),
    mistake(
        counted_from_the_beginning,
        "how full a segment is, is counted anew for each adapter, and not from the first row of all.",
    ),
    mistake(one_token_each, "a segment for each token is BGMV: the adapter is read once for every token."),
    mistake(rest_lost, "the last segment of an adapter is rarely full, and its tokens want their adapter, too.", LOST),
    mistake(end_missing, "where does the last segment end? Without that number nobody multiplies it.", LOST),
    mistake(begin_missing, "where does the first segment start? Without that number nobody multiplies it.", LOST),
    mistake(lengths_for_starts, "those are the lengths of the segments, and not where they start."),
    mistake(adapters_for_rows, "those are the adapters: a kernel wants to know which rows of x to read."),
    mistake(last_token_first, "the tokens of one adapter come in the order in which they stood in the batch."),
    mistake(filled_up, "a token that is in a segment twice gets its patch twice."),
    mistake(
        edges_of_the_unsorted,
        "the rows are sorted, and the edges are those from before: both have to speak of the same order.",
        WRONG_EDGES,
    ),
)
