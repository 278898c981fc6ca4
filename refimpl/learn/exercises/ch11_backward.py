"""Chapter 11: the backward pass of one LoRA: what a change of A, B and x does to the loss.

loracle learn check        is it right?
loracle learn hint         a hint; there are three
"""


def backward(x, A, B, scale, dy):
    """Return dA, dB, dx for y = scale * (x A^T) B^T.

    x      [tokens, d_in]   what went in
    A      [r, d_in]        the first of the two thin matrices
    B      [d_out, r]       the second
    scale  one number
    dy     [tokens, d_out]  how much the loss grows with each number of y
    Returned: arrays of the shapes of A, B and x: how much the loss grows with each number of these.
    """
    raise NotImplementedError
