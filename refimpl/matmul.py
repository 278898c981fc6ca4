"""x W^T in the form that costs least: for few tokens, for many, and for weights of a half type.

A BLAS packs both matrices before it multiplies. For few tokens, when the weights come from memory as they do in a
decode step, that costs more than it brings:

    up to FEW_TOKENS    W x for each token: nothing is packed
    up to SOME_TOKENS   (W x^T)^T: the first matrix is packed more cheaply than the second
    more                x W^T

The numbers are OpenBLAS's, measured on weights of 256 x 256 to 2048 x 768 that were out of the cache. `dot` is the same
product as `@`, with less to do before it starts.
"""

import numpy as np

from .arrays import Array, Float, Precision, namespace, widen

FEW_TOKENS = 6  # at 6 to 8 tokens the first two forms cost the same
SOME_TOKENS = 64  # at 8 tokens the second takes half of the time of the third, at 128 as long, and longer beyond
WIDEN_AT_ONCE = 1 << 22  # numbers of a half type that are float32 at one time: a larger piece takes more memory


def matmul(
    x: Float[Array, "tokens d_in"], weight: Float[Array, "d_out d_in"], p: Precision
) -> Float[Array, "tokens d_out"]:
    """Return x W^T in the type of x. A weight of a half type passes through a small buffer, never as a whole."""
    tokens, (d_out, d_in) = x.shape[0], weight.shape
    if weight.dtype == x.dtype:
        return product(x, weight)
    y, piece = namespace(x).empty((tokens, d_out), x.dtype), max(1, WIDEN_AT_ONCE // d_in)
    for start in range(0, d_out, piece):
        y[:, start : start + piece] = product(x, widen(weight[start : start + piece], p.compute))
    return y


def product(x: Float[Array, "tokens d_in"], W: Float[Array, "d_out d_in"]) -> Float[Array, "tokens d_out"]:
    """Return x W^T of two arrays of one type."""
    if isinstance(x, np.ndarray) and len(x) <= FEW_TOKENS:
        return (W @ x[:, :, None])[:, :, 0]
    if isinstance(x, np.ndarray) and len(x) <= SOME_TOKENS:
        return np.ascontiguousarray(W.dot(x.T).T)
    return x.dot(W.T)
