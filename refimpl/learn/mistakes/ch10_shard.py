"""Wrong cuts: on one GPU each of them is right."""

import numpy as np

from ...arrays import Array
from ..exercise import Mistake
from ..two_ranks import cut

Parts = list[tuple[Array, Array]]


def B_always_cut(A: Array, B: Array, split: str, ranks: int) -> Parts:
    return [(A, part) for part in np.array_split(B, ranks, axis=0)]


def A_always_cut(A: Array, B: Array, split: str, ranks: int) -> Parts:
    return [(part, B) for part in np.array_split(A, ranks, axis=1)]


def both_cut(A: Array, B: Array, split: str, ranks: int) -> Parts:
    return list(zip(np.array_split(A, ranks, axis=1), np.array_split(B, ranks, axis=0), strict=True))


def nothing_cut(A: Array, B: Array, split: str, ranks: int) -> Parts:
    return [(A, B)] * ranks


def rank_dimension_cut(A: Array, B: Array, split: str, ranks: int) -> Parts:
    parts = np.array_split(np.arange(len(A)), ranks)
    return [(A[part], B[:, part]) for part in parts]


def every_nth_row(A: Array, B: Array, split: str, ranks: int) -> Parts:
    if split == "out":
        return [(A, B[rank::ranks]) for rank in range(ranks)]
    return [(A[:, rank::ranks], B) for rank in range(ranks)]


def divided_by_ranks(A: Array, B: Array, split: str, ranks: int) -> Parts:
    return (
        cut(A, B, split, ranks)
        if split == "out"
        else [(part, whole_B / ranks) for part, whole_B in cut(A, B, split, ranks)]
    )


def first_part_for_everyone(A: Array, B: Array, split: str, ranks: int) -> Parts:
    return cut(A, B, split, ranks)[:1] * ranks


MISTAKES = (
    Mistake(
        "B_always_cut",
        "a row-parallel layer gives each rank some of the inputs, and it is A that reads those.",
        B_always_cut,
    ),
    Mistake(
        "A_always_cut",
        "a column-parallel layer gives each rank all of the inputs, so its A needs all of its columns.",
        A_always_cut,
    ),
    Mistake(
        "both_cut", "only the side that the layer splits is split; the other matrix is whole on every rank.", both_cut
    ),
    Mistake(
        "nothing_cut",
        "a rank that has all of B computes outputs that belong to others.",
        nothing_cut,
        ("https://github.com/saforem2/ezpz/issues/208",),
    ),
    Mistake(
        "rank_dimension_cut",
        "r is no width of the layer: a rank of an adapter and a rank of a group share nothing but the word.",
        rank_dimension_cut,
        ("https://github.com/predibase/lorax/pull/47",),
    ),
    Mistake(
        "every_nth_row",
        "each rank has one run of rows, because it is a run of W's rows that it has.",
        every_nth_row,
        ("https://github.com/Lightning-AI/litgpt/issues/891",),
    ),
    Mistake(
        "divided_by_ranks",
        "the ranks' results are parts of one sum, and no copies of it: nothing has to be averaged.",
        divided_by_ranks,
    ),
    Mistake(
        "first_part_for_everyone",
        "rank i needs the i-th part.",
        first_part_for_everyone,
    ),
)
