"""Chapter 4: keys and values in pages.

Where in the cache do the key and the value of each token of a batch go?

    loracle learn check        is it right?
    loracle learn hint         a hint; there are three
"""

import numpy as np


def slots(block_tables, positions, query_starts, block_size):
    """Return the slot of each token, as an array (or a list) [tokens] of whole numbers.

    block_tables  [requests, blocks]: the blocks of each request, in the order of its positions; -1 where it has fewer
    positions     [tokens]: of each token in its own request, counted from 0
    query_starts  [requests + 1]: request r owns the tokens query_starts[r] to query_starts[r + 1] - 1 of the batch
    block_size    how many tokens a block holds; block b has the slots b * block_size to (b + 1) * block_size - 1
    """
    raise NotImplementedError
