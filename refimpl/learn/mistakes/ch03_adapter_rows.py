"""Wrong ways from one per request to one per token: each was seen in an engine, or is easy to write."""

from collections.abc import Sequence

import numpy as np

from ...arrays import Array
from ...plans import NO_ADAPTER
from ..exercise import Mistake

Lists = Sequence[Sequence[int]]


def padded(per_request: Lists, fill: int = NO_ADAPTER) -> Array:
    """[requests, k]: the right half of the work."""
    k = max(1, *map(len, per_request))
    return np.array([[*slots, *[fill] * (k - len(slots))] for slots in per_request])


def once_per_request(per_request: Lists, lengths: Sequence[int]) -> Array:
    return padded(per_request)


def none_is_slot_zero(per_request: Lists, lengths: Sequence[int]) -> Array:
    return padded(per_request, 0).repeat(lengths, axis=0)


def ragged(per_request: Lists, lengths: Sequence[int]) -> list[list[int]]:
    pairs = zip(per_request, lengths, strict=True)
    return [list(slots) or [NO_ADAPTER] for slots, n in pairs for _ in range(n)]


def no_column_for_nobody(per_request: Lists, lengths: Sequence[int]) -> Array:
    k = max(map(len, per_request))
    return padded(per_request)[:, :k].repeat(lengths, axis=0)


def numbers_for_rows(per_request: Lists, lengths: Sequence[int]) -> Array:
    return padded(per_request)[:, 0].repeat(lengths)


def tiled(per_request: Lists, lengths: Sequence[int]) -> Array:
    rows = padded(per_request)
    return np.resize(rows, (sum(lengths), rows.shape[1]))


def first_of_a_sum(per_request: Lists, lengths: Sequence[int]) -> Array:
    return padded([slots[:1] for slots in per_request]).repeat(lengths, axis=0)


def base_left_out(per_request: Lists, lengths: Sequence[int]) -> Array:
    pairs = zip(per_request, lengths, strict=True)
    return np.array([row for slots, n in pairs if slots for row in [padded(per_request)[per_request.index(slots)]] * n])


def as_long_as_the_first(per_request: Lists, lengths: Sequence[int]) -> Array:
    return padded(per_request).repeat(lengths[0], axis=0)


def sorted_by_adapter(per_request: Lists, lengths: Sequence[int]) -> Array:
    rows = padded(per_request).repeat(lengths, axis=0)
    return rows[np.argsort(rows[:, 0], kind="stable")]


def columns_for_rows(per_request: Lists, lengths: Sequence[int]) -> Array:
    return padded(per_request).repeat(lengths, axis=0).T


def filled_with_its_own(per_request: Lists, lengths: Sequence[int]) -> Array:
    k = max(1, *map(len, per_request))
    rows = [(list(slots) or [NO_ADAPTER]) * k for slots in per_request]
    return np.array([row[:k] for row in rows]).repeat(lengths, axis=0)


MISTAKES = (
    Mistake(
        "once_per_request",
        "a request has one list of adapters and many tokens: each of its tokens needs a row.",
        once_per_request,
        (
            "https://github.com/predibase/lorax/pull/570",
            "https://github.com/vllm-project/vllm/pull/21068",
            "https://github.com/vllm-project/vllm-metal/pull/351",
        ),
    ),
    Mistake(
        "none_is_slot_zero",
        "0 is an adapter slot: what has no adapter is -1.",
        none_is_slot_zero,
        ("https://github.com/NVIDIA/TensorRT-LLM/issues/2096",),
    ),
    Mistake("ragged", "an array needs rows of one length: -1 fills the columns that are left.", ragged),
    Mistake(
        "no_column_for_nobody",
        "a batch in which nobody has an adapter still has one column, of -1.",
        no_column_for_nobody,
    ),
    Mistake(
        "numbers_for_rows",
        "a row is a list of k adapters, and stays a list when k is 1.",
        numbers_for_rows,
    ),
    Mistake(
        "tiled",
        "the list was repeated as a whole; each of its elements has to be repeated as often as its request is long.",
        tiled,
    ),
    Mistake("first_of_a_sum", "a request may sum several adapters.", first_of_a_sum),
    Mistake("base_left_out", "a request without adapters has tokens, too.", base_left_out),
    Mistake("as_long_as_the_first", "requests have different lengths.", as_long_as_the_first),
    Mistake(
        "sorted_by_adapter",
        "the rows follow the tokens: row t is token t's, and the tokens come request by request.",
        sorted_by_adapter,
        ("https://github.com/vllm-project/vllm-metal/pull/351",),
    ),
    Mistake("columns_for_rows", "a token is a row, and the adapters of its sum are the columns.", columns_for_rows),
    Mistake(
        "filled_with_its_own",
        "an adapter that stands twice in a row is added twice.",
        filled_with_its_own,
    ),
)
