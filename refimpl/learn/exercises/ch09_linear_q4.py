"""Chapter 9: one linear layer of a base in four bits, with an adapter beside it.

loracle learn check        is it right?
loracle learn hint         a hint; there are three
"""


def linear_q4(x, q, steps, A, B, scale):
    """Return y = x W^T + scale * (x A^T) B^T, where W is what q and steps stand for.

    x      [tokens, d_in]   float
    q      [d_out, d_in]    whole numbers from -7 to 7
    steps  [d_out, groups]  float. A row of q lies in `groups` runs of d_in / groups numbers, each with one step:
                            W[o, i] = q[o, i] * (the step of the run that i is in)
    A      [r, d_in]        float
    B      [d_out, r]       float
    scale  one number
    """
    raise NotImplementedError
