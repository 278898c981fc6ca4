"""Chapter 10: the part of an adapter that each rank of a tensor-parallel group holds.

loracle learn check        is it right?
loracle learn hint         a hint; there are three
"""


def shard(A, B, split, ranks):
    """Return [(A of rank 0, B of rank 0), (A of rank 1, B of rank 1), ...] for one module.

    A      [r, d_in]    on one GPU; r may be 1
    B      [d_out, r]
    split  "out"  rank i computes the i-th run of d_out / ranks outputs, from all of x, and they are put side by side
           "in"   rank i gets the i-th run of d_in / ranks inputs, and the results of the ranks are added
    ranks  how many there are; what is split is a multiple of it
    """
    raise NotImplementedError
