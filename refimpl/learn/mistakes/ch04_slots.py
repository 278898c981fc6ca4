"""Wrong slots: each was seen in an engine, or is easy to write."""

from collections.abc import Callable

import numpy as np

from ...arrays import Array
from ..exercise import Mistake


def requests_of(query_starts: Array) -> Array:
    """[tokens]: whose token it is."""
    return np.repeat(np.arange(len(query_starts) - 1), np.diff(query_starts))


def token_by_token(slot: Callable[[Array, int, int], int]) -> Callable[..., Array]:
    """The right loop around a formula for one token: of its request's table, its position and the block size."""

    def slots(block_tables: Array, positions: Array, query_starts: Array, block_size: int) -> Array:
        pairs = zip(requests_of(query_starts), positions, strict=True)
        return np.array([slot(block_tables[request], position, block_size) for request, position in pairs])

    return slots


def right(block_tables: Array, positions: Array, query_starts: Array, block_size: int) -> Array:
    blocks = block_tables[requests_of(query_starts), positions // block_size]
    return blocks * block_size + positions % block_size


def table_of_the_first_request(block_tables: Array, positions: Array, query_starts: Array, block_size: int) -> Array:
    return block_tables[0][positions // block_size] * block_size + positions % block_size


def place_in_the_chunk(block_tables: Array, positions: Array, query_starts: Array, block_size: int) -> Array:
    places = np.concatenate([np.arange(n) for n in np.diff(query_starts)])
    return right(block_tables, places, query_starts, block_size)


def place_in_the_batch(block_tables: Array, positions: Array, query_starts: Array, block_size: int) -> Array:
    return right(block_tables, np.arange(len(positions)), query_starts, block_size)


def one_per_request(block_tables: Array, positions: Array, query_starts: Array, block_size: int) -> Array:
    return right(block_tables, positions, query_starts, block_size)[query_starts[1:] - 1]


MISTAKES = (
    Mistake(
        "side_by_side",
        "only the first block of the table is looked up: the others lie anywhere.",
        token_by_token(lambda table, position, size: table[0] * size + position),
        ("https://github.com/vllm-project/vllm/pull/42420",),
    ),
    Mistake(
        "table_ignored",
        "a position is a place in the request, and a slot one in the cache: the table leads from one to the other.",
        token_by_token(lambda table, position, size: position),
        ("https://github.com/tanishqkumar/ssd/issues/23",),
    ),
    Mistake(
        "table_of_the_first_request",
        "each request has a row of its own in block_tables: two tenants write into the same blocks.",
        table_of_the_first_request,
    ),
    Mistake(
        "place_in_the_chunk",
        "a request that goes on after earlier tokens writes over its first ones: its position was not used.",
        place_in_the_chunk,
        (
            "https://github.com/Blaizzy/mlx-vlm/issues/1983",
            "https://github.com/vllm-project/vllm-metal/pull/144",
        ),
    ),
    Mistake(
        "place_in_the_batch",
        "the number of a token in the batch is not its position in its request.",
        place_in_the_batch,
    ),
    Mistake(
        "block_for_slot",
        "a block has block_size slots: block b does not begin at slot b.",
        token_by_token(lambda table, position, size: table[position // size] + position % size),
    ),
    Mistake(
        "quotient_for_remainder",
        "the quotient says which block of the table, and the remainder where in it.",
        token_by_token(lambda table, position, size: table[position % size] * size + position // size),
    ),
    Mistake(
        "block_after",
        "position block_size - 1 is still in the first block: somewhere you count from 1.",
        token_by_token(lambda table, position, size: table[(position + 1) // size] * size + position % size),
        ("https://github.com/vllm-project/vllm/pull/33759",),
    ),
    Mistake(
        "blocks_of_sixteen",
        "the block size is an argument.",
        token_by_token(lambda table, position, size: table[position // 16] * 16 + position % 16),
        ("https://github.com/vllm-project/vllm/pull/42420",),
    ),
    Mistake(
        "one_per_request",
        "every token has a key and a value, not the last one of each request alone.",
        one_per_request,
    ),
)
