import numpy as np


def slots(block_tables, positions, query_starts, block_size):
    request = np.repeat(np.arange(len(block_tables)), np.diff(query_starts))
    block = block_tables[request, positions // block_size]
    return block * block_size + positions % block_size
