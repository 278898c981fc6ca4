"""Chapter 8: which tokens does each block of an SGMV kernel multiply?

loracle learn check        is it right?
loracle learn hint         a hint; there are three
"""


def segments(adapter_ids, size):
    """Return (rows, starts): segment i is the tokens rows[starts[i]:starts[i + 1]].

    adapter_ids  [tokens] the adapter of each token, -1 for none: a NumPy array, and not yours to change
    size         how many tokens a segment has at most, 1 or more

    rows     the tokens that have an adapter, sorted by adapter; those of one adapter as they stood in the batch
    starts   where each segment starts in rows; at the end, one number more: how many rows there are

    A segment is of one adapter, and there are as few as can be. Lists or arrays, as you like:

        adapter_ids [2, 2, -1, 0, 2], size 2  ->  rows [3, 0, 1, 4], starts [0, 1, 3, 4]
    """
    raise NotImplementedError
