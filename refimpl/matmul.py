"""x W^T in the form that costs least: for few tokens, for many, and for weights of a half type.

A BLAS packs both matrices before it multiplies. For few tokens, when the weights come from memory as they do in a
decode step, that costs more than it brings:

    up to SOME_TOKENS   W x^T, some rows of W at a time, so few that OpenBLAS packs nothing, where it can
    up to FEW_TOKENS    W x for each token: nothing is packed
    up to SOME_TOKENS   (W x^T)^T: the first matrix is packed more cheaply than the second
    more                x W^T

The numbers are OpenBLAS's, measured on weights of 256 x 256 to 32000 x 768 that were out of the cache. `dot` is the
same product as `@`, with less to do before it starts.
"""

import os
from functools import lru_cache

import numpy as np

from .arrays import Array, Float, Precision, namespace, widen

FEW_TOKENS = 6  # at 6 to 8 tokens the first two forms cost the same
SOME_TOKENS = 64  # at 8 tokens the second takes half of the time of the third, at 128 as long, and longer beyond
WIDEN_AT_ONCE = 1 << 22  # numbers of a half type that are float32 at one time: a larger piece takes more memory

# OpenBLAS multiplies without packing what takes up to 100^3 multiplications, on one thread, on processors with AVX-512
# alone (kernel/x86_64/sgemm_small_kernel_permit_skylakex.c). Without it pieces take up to a fifth longer.
SMALL_PRODUCT = 100**3
ROWS_OF_PIECE = range(12, 129)  # fewer are slower than one product of all rows
SIMD = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", ())
WITHOUT_PACKING = "AVX512_SKX" in SIMD or "X86_V4" in SIMD  # the name of older and of newer NumPy
# What one thread multiplies as fast as several of them, which first have to be woken: any weight, if there is but one.
ONE_THREAD = "1" in (os.environ.get("OPENBLAS_NUM_THREADS"), os.environ.get("OMP_NUM_THREADS"), str(os.cpu_count()))
SMALL_WEIGHT = 1 << (62 if ONE_THREAD else 18)


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
    tokens = len(x)
    if not isinstance(x, np.ndarray) or tokens > SOME_TOKENS:
        return x.dot(W.T)
    if tokens > 1 and W.flags.c_contiguous and (rows := piece(tokens, *W.shape)):
        parts = W.reshape(-1, rows, W.shape[1]) @ np.ascontiguousarray(x.T)
        return np.ascontiguousarray(parts.reshape(-1, tokens).T)
    if tokens <= FEW_TOKENS:
        return (W @ x[:, :, None])[:, :, 0]
    return np.ascontiguousarray(W.dot(x.T).T)


@lru_cache
def piece(tokens: int, d_out: int, d_in: int) -> int:
    """The rows of W that are multiplied at a time, all as many: the most without packing. 0: that is not worth it."""
    if not WITHOUT_PACKING or d_out * d_in > SMALL_WEIGHT or not tokens * d_in:
        return 0
    most = SMALL_PRODUCT // (tokens * d_in)
    return next((n for n in reversed(ROWS_OF_PIECE) if n <= most and d_out % n == 0), 0)
