"""x W^T in the form that costs least: for few tokens, for many, and for weights of a half type.

A BLAS packs both matrices before it multiplies. For few tokens that costs more than it brings, again at every step:

    one token           W x: nothing is packed
    up to SOME_TOKENS   x P for each panel P of a small W, which was packed when it was first used, and is kept
                        W x^T, some rows of a large W at a time, so few that OpenBLAS packs nothing, where it can
                        W x for each token, if they are FEW_TOKENS, and else (W x^T)^T: the first matrix is packed
                        more cheaply than the second
    more                x W^T

The numbers are OpenBLAS's, measured on weights of 64 x 256 to 32000 x 768 that were out of the cache. `dot` is the same
product as `@`, with less to do before it starts.
"""

import os
import weakref
from functools import lru_cache

import numpy as np

from .arrays import Array, Float, Precision, widen
from .memory_pool import Arena, empty

FEW_TOKENS = 6  # at 6 to 8 tokens the first two forms cost the same
SOME_TOKENS = 64  # at 8 tokens the second takes half of the time of the third, at 128 as long, and longer beyond
WIDEN_AT_ONCE = 1 << 22  # numbers of a half type that are float32 at one time: a larger piece takes more memory

# What is kept of a small weight is a second copy of it. Large ones would gain as much, but nobody has twice the memory.
PANEL = 64  # columns; 32 and 128 are slower for most shapes
KEPT_WEIGHT = range(1 << 12, (1 << 18) + 1)  # numbers; for smaller ones any form takes as long as calling it
_kept: dict[int, Array] = {}  # the panels of a weight, by its id, as long as it lives
_arena = Arena()  # where they lie

# OpenBLAS multiplies without packing what takes up to 100^3 multiplications, on one thread, on processors with AVX-512
# alone (kernel/x86_64/sgemm_small_kernel_permit_skylakex.c). Without it pieces take up to a fifth longer.
SMALL_PRODUCT = 100**3
ROWS_OF_PIECE = range(12, 129)  # fewer are slower than one product of all rows
TOKENS_OF_PIECE = 16  # of a product with a thin matrix; 8 to 64 take as long, and more of them are packed again
SIMD = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", ())
WITHOUT_PACKING = "AVX512_SKX" in SIMD or "X86_V4" in SIMD  # the name of older and of newer NumPy
# What one thread multiplies as fast as several of them, which first have to be woken: any weight, if there is but one.
# Small ones take the same form either way, so that a process of one thread has the bits of one of several.
ONE_THREAD = "1" in (os.environ.get("OPENBLAS_NUM_THREADS"), os.environ.get("OMP_NUM_THREADS"), str(os.cpu_count()))
SMALL_WEIGHT = 1 << (62 if ONE_THREAD else 18)


def matmul(
    x: Float[Array, "tokens d_in"], weight: Float[Array, "d_out d_in"], p: Precision
) -> Float[Array, "tokens d_out"]:
    """Return x W^T in the type of x. A weight of a half type passes through a small buffer, never as a whole."""
    tokens, (d_out, d_in) = x.shape[0], weight.shape
    if weight.dtype == x.dtype:
        return product(x, weight)
    y, piece = empty((tokens, d_out), x), max(1, WIDEN_AT_ONCE // d_in)
    for start in range(0, d_out, piece):
        y[:, start : start + piece] = product(x, widen(weight[start : start + piece], p.compute))
    return y


def product(x: Float[Array, "tokens d_in"], W: Float[Array, "d_out d_in"]) -> Float[Array, "tokens d_out"]:
    """Return x W^T of two arrays of one type."""
    tokens = len(x)
    if not isinstance(x, np.ndarray) or tokens > SOME_TOKENS:
        return x.dot(W.T, out=empty((tokens, len(W)), x))
    if tokens > 1 and (packed := panels(W)) is not None:
        y = np.empty((tokens, len(packed), PANEL), x.dtype)
        np.matmul(x, packed, out=y.transpose(1, 0, 2))
        return y.reshape(tokens, -1)[:, : len(W)]
    if tokens > 1 and W.flags.c_contiguous and (rows := piece(tokens, *W.shape)):
        parts = W.reshape(-1, rows, W.shape[1]) @ np.ascontiguousarray(x.T)
        return np.ascontiguousarray(parts.reshape(-1, tokens).T)
    if tokens <= FEW_TOKENS:
        return (W @ x[:, :, None])[:, :, 0]
    return np.ascontiguousarray(W.dot(x.T).T)


def thin(x: Float[Array, "tokens d_in"], matrix: Float[Array, "d_in d_out"]) -> Float[Array, "tokens d_out"]:
    """Return x times a matrix one of whose sides is a rank: each number is used so few times that packing does not pay.

    Some tokens at a time, then, so few that OpenBLAS does not do it; all pieces are one call."""
    (d_in, d_out), (pieces, rest) = matrix.shape, divmod(len(x), TOKENS_OF_PIECE)
    packed = not WITHOUT_PACKING or TOKENS_OF_PIECE * matrix.size > SMALL_PRODUCT
    if pieces < 2 or packed or not isinstance(x, np.ndarray):
        return x.dot(matrix)
    y, end = empty((len(x), d_out), x), len(x) - rest
    each = (pieces, TOKENS_OF_PIECE)
    np.matmul(x[:end].reshape(*each, d_in), matrix, out=y[:end].reshape(*each, d_out))
    y[end:] = x[end:].dot(matrix)
    return y


def panels(W: Float[Array, "d_out d_in"]) -> Float[Array, "panels d_in panel"] | None:
    """W^T, PANEL columns at a time, the last ones filled up with 0: packed at the first call, and kept as long as W is.

    None for what is too large to be held twice, too small to gain, or could still be written to."""
    d_out, d_in = W.shape
    if W.size not in KEPT_WEIGHT or d_out < PANEL or W.flags.writeable:
        return None
    packed = _kept.get(id(W))
    if packed is None:
        padded = np.zeros((-(-d_out // PANEL) * PANEL, d_in), W.dtype)
        padded[:d_out] = W
        packed = _arena.empty((len(padded) // PANEL, d_in, PANEL), W.dtype)
        packed[:] = padded.reshape(-1, PANEL, d_in).transpose(0, 2, 1)
        _kept[id(W)] = packed
        weakref.finalize(W, _kept.pop, id(W))
    return packed


@lru_cache
def piece(tokens: int, d_out: int, d_in: int) -> int:
    """The rows of W that are multiplied at a time, all as many: the most without packing. 0: that is not worth it."""
    if not WITHOUT_PACKING or d_out * d_in > SMALL_WEIGHT or not tokens * d_in:
        return 0
    most = SMALL_PRODUCT // (tokens * d_in)
    return next((n for n in reversed(ROWS_OF_PIECE) if n <= most and d_out % n == 0), 0)
