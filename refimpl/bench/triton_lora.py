"""LoRA in Triton, written for the comparison from what is published of vLLM's kernels: no line of theirs is in here.

The tokens are sorted by adapter. Grid: (splits of K * tiles of tokens * tiles of the output, adapters). A block whose
adapter has no such tile leaves at once. Shrink adds its share of K to a float32 buffer by atomics, which is why that
buffer is set to zero first; expand rounds it to the weights' type, multiplies, and adds to y. The tiles of tokens are
cut to the longest run of the batch, not to all its tokens, so that fewer blocks are launched for nothing.
"""

from typing import Any

import numpy as np
import triton
import triton.language as tl

from .case import SCALE, Case
from .torch_case import Entry, tensors


@triton.jit
def shrink(  # type: ignore[no-untyped-def]
    low, x, A, rows, starts, d_in, adapter_stride, split_k,
    RANK: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """low[rows] += x[rows] A^T over one share of K."""
    split, tile, adapter = tl.program_id(0) % split_k, tl.program_id(0) // split_k, tl.program_id(1)
    tiles_n = (RANK + TILE_N - 1) // TILE_N
    first, last = tl.load(starts + adapter), tl.load(starts + adapter + 1)
    position = first + tile // tiles_n * TILE_M + tl.arange(0, TILE_M)
    if first + tile // tiles_n * TILE_M >= last:
        return
    row = tl.load(rows + position, mask=position < last, other=0).to(tl.int64)
    n = tile % tiles_n * TILE_N + tl.arange(0, TILE_N)
    A_start = A + adapter.to(tl.int64) * adapter_stride
    total = tl.zeros((TILE_M, TILE_N), dtype=tl.float32)
    for step in range(0, tl.cdiv(d_in, TILE_K * split_k)):
        k = (step * split_k + split) * TILE_K + tl.arange(0, TILE_K)
        rows_tile = tl.load(
            x + row[:, None] * d_in + k[None, :], mask=(position < last)[:, None] & (k < d_in)[None, :], other=0.0
        )
        columns_tile = tl.load(
            A_start + n[None, :] * d_in + k[:, None], mask=(n < RANK)[None, :] & (k < d_in)[:, None], other=0.0
        )
        total += tl.dot(rows_tile, columns_tile)
    inside = (position < last)[:, None] & (n < RANK)[None, :]
    tl.atomic_add(low + row[:, None] * RANK + n[None, :], total, mask=inside, sem="relaxed")


@triton.jit
def expand(  # type: ignore[no-untyped-def]
    y, low, B, rows, starts, d_out, adapter_stride, scale,
    RANK: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """y[rows] += scale * low[rows] B^T."""
    tile, adapter = tl.program_id(0), tl.program_id(1)
    tiles_n = tl.cdiv(d_out, TILE_N)
    first, last = tl.load(starts + adapter), tl.load(starts + adapter + 1)
    position = first + tile // tiles_n * TILE_M + tl.arange(0, TILE_M)
    if first + tile // tiles_n * TILE_M >= last:
        return
    row = tl.load(rows + position, mask=position < last, other=0).to(tl.int64)
    n = tile % tiles_n * TILE_N + tl.arange(0, TILE_N)
    k = tl.arange(0, TILE_K)
    B_start = B + adapter.to(tl.int64) * adapter_stride
    columns_tile = tl.load(
        B_start + n[None, :] * RANK + k[:, None], mask=(n < d_out)[None, :] & (k < RANK)[:, None], other=0.0
    )
    rows_tile = tl.load(
        low + row[:, None] * RANK + k[None, :], mask=(position < last)[:, None] & (k < RANK)[None, :], other=0.0
    )
    delta = tl.dot(rows_tile.to(columns_tile.dtype), columns_tile) * scale
    at = y + row[:, None] * d_out + n[None, :]
    inside = (position < last)[:, None] & (n < d_out)[None, :]
    tl.store(at, (tl.load(at, mask=inside, other=0.0).to(tl.float32) + delta).to(columns_tile.dtype), mask=inside)


def triton_lora(case: Case) -> Entry:
    """Both kernels over every set; tiles and splits by the size of the batch."""
    import torch

    A, B, xs, ys = tensors(case)
    rank, d_in, d_out, distinct = case.point.rank, case.point.d_in, case.point.d_out, case.work.distinct
    counts = np.bincount(case.ids[0], minlength=distinct)
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)).to(A.device)
    rows = torch.from_numpy(np.argsort(case.ids[0], kind="stable").astype(np.int32)).to(A.device)
    low = torch.empty((case.point.tokens, rank), dtype=torch.float32, device=A.device)
    tile = 16 if counts.max() <= 16 else 32 if counts.max() <= 32 else 64
    tiles, wide, deep = -(-int(counts.max()) // tile), 128, max(16, triton.next_power_of_2(rank))
    step, ranks = 128 if tile <= 32 else 64, min(deep, 64)
    blocks = tiles * distinct * -(-rank // ranks)
    split = max(1, min(64 if case.point.tokens < 128 else 8, -(-d_in // step), -(-512 // blocks)))

    def run(i: int) -> None:
        A_set, B_set = A[i * distinct], B[i * distinct]
        low.zero_()
        shrink[(split * tiles * -(-rank // ranks), distinct)](
            low, xs[i], A_set, rows, starts, d_in, A.stride(0), split, RANK=rank, TILE_M=tile, TILE_N=ranks, TILE_K=step
        )  # fmt: skip
        expand[(tiles * -(-d_out // wide), distinct)](
            ys[i], low, B_set, rows, starts, d_out, B.stride(0), SCALE, RANK=rank, TILE_M=tile, TILE_N=wide, TILE_K=deep
        )  # fmt: skip

    runs: list[Any] = [lambda i=i: run(i) for i in range(case.sets)]
    return Entry(runs, ys)
