"""Right in another way: these must pass."""

import numpy as np


def token_by_token(block_tables, positions, query_starts, block_size):
    numbers = []
    for r, table in enumerate(block_tables):
        for t in range(query_starts[r], query_starts[r + 1]):
            block, offset = divmod(positions[t], block_size)
            numbers.append(table[block] * block_size + offset)
    return numbers


def request_by_request(block_tables, positions, query_starts, block_size):
    # All slots of a request in the order of its positions, and then those that are new.
    numbers = np.empty(len(positions), np.int64)
    for table, start, stop in zip(block_tables, query_starts, query_starts[1:], strict=False):
        lying = (table[:, None] * block_size + np.arange(block_size)).ravel()
        numbers[start:stop] = lying[positions[start:stop]]
    return numbers


def searched(block_tables, positions, query_starts, block_size):
    request = np.searchsorted(query_starts, np.arange(len(positions)), side="right") - 1
    return positions + (block_tables[request, positions // block_size] - positions // block_size) * block_size


MUST_PASS = [token_by_token, request_by_request, searched]
