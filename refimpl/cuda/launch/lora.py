"""lora.cu, lora_tensor_cores.cu, lora_paged.cu: adapters packed for them, which of their kernels, and the launch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array, Float, Int, namespace
from ...errors import LoracleError
from ...plans import TILE, LoraColumn, LoraMapping
from . import start
from .checks import check_adapter_ids, check_array
from .gains import Gains, pack_gains
from .start import ENOUGH_BLOCKS, STORED, ceil_div, stored

MAX_RANK = 256  # of lora.cu: what one block holds in shared memory
FULL = 2048  # resident blocks on an H100-class GPU: enough in flight to hide memory latency


@dataclass(frozen=True, eq=False)
class PageTable:
    """Where adapters lie that are in pages (paged_lora.py): offsets count an adapter's own numbers then."""

    rows: Int[
        Array, " rows"
    ]  # int32, of all adapters one after another: which row of weights [pages, width] comes next
    starts: Int[Array, " adapters"]  # where each adapter's begin in it
    width: int


@dataclass(frozen=True, eq=False)
class PackedLora:
    """All adapters of some layers that read the same input, in one buffer, behind tables of where each one begins."""

    dtype: str
    weights: Array  # A, B and bias of every adapter of every slice; each begins at a multiple of 16 bytes
    offsets: Int[Array, "slices adapters 3"]  # int64: where A, B and bias begin; -1: no bias
    ranks: Int[Array, "slices adapters"]  # 0: this adapter leaves this slice alone
    scales: Float[Array, "slices adapters"]
    slice_starts: Int[Array, " edges"]  # the columns of y that belong to slice s: from [s] to [s + 1]
    d_in: int
    adapters: int
    max_rank: int
    widest: int  # columns of the widest slice
    columns: int  # of all slices
    page_table: PageTable | None = None  # None: all in one buffer
    gains: Gains | None = None  # None: no DoRA

    @property
    def slices(self) -> int:
        """How many layers."""
        return int(self.ranks.shape[0])


def pack(
    slices: Sequence[Mapping[int, LoraWeights]], d_outs: Sequence[int], dtype: str, slots: int = 0, xp: Any = np
) -> PackedLora:
    """Lay the adapters (slot -> weights, for each slice) into one buffer. Nothing is padded to a common rank. There may
    be more slots than are filled here."""
    adapters = max(slots, 1 + max((slot for adapters_here in slices for slot in adapters_here), default=0))
    offsets = np.full((len(slices), adapters, 3), -1, np.int64)
    ranks = np.zeros((len(slices), adapters), np.int32)
    scales = np.zeros((len(slices), adapters), np.float32)
    parts: list[Array] = []
    size, align, widths = 0, 16 // STORED[dtype].itemsize, set()
    for index, (adapters_here, d_out) in enumerate(zip(slices, d_outs, strict=True)):
        for slot, lora in adapters_here.items():
            rank, d_in = lora.A.shape
            if slot < 0:
                raise LoracleError(f"adapter slot {slot} is negative")
            if not 1 <= rank <= MAX_RANK:
                raise LoracleError(f"adapter slot {slot}: rank {rank}; the kernels take ranks from 1 to {MAX_RANK}")
            if lora.B.shape != (d_out, rank):
                raise LoracleError(f"adapter slot {slot}: B is {lora.B.shape}, expected {(d_out, rank)}")
            widths.add(d_in)
            ranks[index, slot], scales[index, slot] = rank, lora.scale
            for i, matrix in enumerate((lora.A, lora.B, lora.bias)):
                if matrix is None:
                    continue
                offsets[index, slot, i] = size
                numbers = stored(matrix.reshape(-1), dtype)
                parts += [numbers, xp.zeros(-numbers.size % align, numbers.dtype)]
                size += numbers.size + parts[-1].size
    if len(widths) > 1:
        raise LoracleError(f"layers that share a launch must share their input; these read {sorted(widths)} columns")
    return PackedLora(
        dtype,
        xp.concatenate(parts) if parts else xp.zeros(align, STORED[dtype]),
        xp.asarray(offsets),
        xp.asarray(ranks),
        xp.asarray(scales),
        xp.asarray(np.concatenate([[0], np.cumsum(d_outs)]).astype(np.int32)),
        widths.pop() if widths else 0,
        adapters,
        int(ranks.max(initial=0)),
        max(d_outs),
        sum(d_outs),
        gains=pack_gains(
            [{slot: lora.dora for slot, lora in of.items() if lora.dora is not None} for of in slices], adapters, xp
        ),
    )


@dataclass(frozen=True)
class Kernel:
    """How one kernel is launched: grid (tokens or tiles, numbers of its output / width, slices), and its block.

    It may be a reader's own, `Kernel("my_shrink.cu", "my_shrink", width=4, threads=128)`: each of its parameters gets
    what the parameter of that name gets in lora.cu."""

    file: str | Path  # in kernels/, or else from the current folder
    name: str
    by_tile: bool = False  # False: a row of blocks for each token; True: one for each tile of up to 16 that share one
    width: int = 1  # numbers of the output (of Ax for a shrink, of y for an expand) that one block computes
    threads: int = 128  # of a block
    can_split: bool = False  # it takes `splits`: K = d_in is cut into so many, each summed by blocks of its own


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("lora.cu", "lora_lookup", False, 32, 32),
        Kernel("lora.cu", "lora_shrink_v1", False, 32, 32),
        Kernel("lora.cu", "bgmv_shrink_v2", False, 4, 128, can_split=True),
        Kernel("lora.cu", "sgmv_shrink_v2", True, 16, 256, can_split=True),
        Kernel("lora_tensor_cores.cu", "sgmv_shrink_v3", True, 16, 128, can_split=True),
        Kernel("lora.cu", "lora_expand_v1", False, 128, 128),
        Kernel("lora.cu", "bgmv_expand_v2", False, 128, 128),
        Kernel("lora.cu", "sgmv_expand_v2", True, 128, 128),
        Kernel("lora_tensor_cores.cu", "sgmv_expand_v3", True, 64, 128),
        Kernel("lora_paged.cu", "lookup_paged", False, 32, 32),
        Kernel("lora_paged.cu", "bgmv_shrink_paged", False, 4, 128, can_split=True),
        Kernel("lora_paged.cu", "bgmv_expand_paged", False, 128, 128),
        Kernel("lora_paged.cu", "sgmv_shrink_paged", True, 16, 256, can_split=True),
        Kernel("lora_paged.cu", "sgmv_expand_paged", True, 128, 128),
    )
}


@dataclass(frozen=True)
class LoraLaunch:
    """Which kernels, over how many blocks shrink splits K, and over how many at most expand spreads the columns.

    A kernel is a name of KERNELS, or a Kernel of the reader's own."""

    shrink: str | Kernel = "bgmv_shrink_v2"
    expand: str | Kernel = "bgmv_expand_v2"
    splits: int = 1
    spread: int = 1 << 15


def kernel_of(kernel: str | Kernel) -> Kernel:
    """Return the kernel of that name. LoracleError for one that there is not."""
    if isinstance(kernel, Kernel):
        return kernel
    if kernel not in KERNELS:
        raise LoracleError(f"there is no kernel {kernel!r}; there are {', '.join(KERNELS)}, and Kernel(file, name)")
    return KERNELS[kernel]


def paged_form(kernel: Kernel) -> Kernel:
    """Return the kernel that does the same for adapters in pages. Tensor cores have none: v2 computes what v3 would.

    LoracleError for v1, and for a reader's own."""
    form = kernel.name.removeprefix("lora_").removesuffix("_v2").removesuffix("_v3")
    if f"{form}_paged" not in KERNELS:
        raise LoracleError(f"{kernel.name} cannot read adapters that lie in pages")
    return KERNELS[f"{form}_paged"]


def choose(tokens: int, adapters: int, rank: int, d_in: int, slices: int, dtype: str, round_rank: bool) -> LoraLaunch:
    """The dispatcher: `tokens` that have an adapter, among them so many different `adapters`, the largest rank.

    From four tokens per adapter on, a tile that is three quarters empty still reads the weights four times less often
    than one token after another would. Tensor cores take halves, and make A x one of them."""
    shared = tokens >= 4 * adapters
    if shared:
        # ceil(tokens / 16) tiles at least, and up to one more for each further adapter
        rows = ceil_div(tokens, TILE) + adapters - 1
        blocks, enough = rows * ceil_div(rank, 16) * slices, FULL
        shrink, expand = "sgmv_shrink_v2", "sgmv_expand_v2"
        if dtype != "float32":
            shrink, expand = "sgmv_shrink_v3", "sgmv_expand_v3" if round_rank else expand
    else:
        rows, enough = tokens, ENOUGH_BLOCKS
        blocks = tokens * ceil_div(rank, 4) * slices
        shrink, expand = "bgmv_shrink_v2", "bgmv_expand_v2"
    splits = max(1, min(ceil_div(enough, blocks), d_in // 256, 16))
    return LoraLaunch(shrink, expand, splits, spread=max(1, 2 * FULL // (rows * slices)))


def lora_delta(
    y: Float[Array, "tokens columns"],
    x: Array,
    packed: PackedLora,
    mapping: LoraMapping,
    j: int = 0,
    round_rank: bool = False,
    round_delta: bool = False,
    launch: LoraLaunch | None = None,
) -> None:
    """y[t] += weight * scale * B (A x[t]), in place, for all slices and the j-th adapter of each row; rows without one
    are not touched.

    x is [tokens, d_in], or token ids [tokens] at the embedding. Without `launch` the dispatcher chooses."""
    column, lookup = mapping.columns[j], x.dtype.kind == "i"
    _check(y, x, packed, column)
    rows = len(column.sorted_rows)
    if rows == 0 or packed.max_rank == 0:
        return
    if launch is None:
        launch = choose(rows, column.adapters, packed.max_rank, packed.d_in, packed.slices, packed.dtype, round_rank)
    if launch.expand == "sgmv_expand_v3" and not round_rank:
        raise LoracleError("sgmv_expand_v3 rounds the rank-r intermediate; where it is to stay float32, v2 must run")
    shrink, expand = kernel_of("lora_lookup" if lookup else launch.shrink), kernel_of(launch.expand)
    dtype = packed.dtype
    if packed.page_table is not None:
        shrink, expand, dtype = paged_form(shrink), paged_form(expand), f"{dtype}/float32"
    splits = launch.splits if shrink.can_split else 1
    arguments = _arguments(y, x, packed, mapping.device.columns[j], splits)
    arguments |= {"round_rank": int(round_rank), "round_delta": int(round_delta)}
    tiles, tokens, stride = len(column.tile_starts) - 1, y.shape[0], packed.max_rank
    grid = (tiles if shrink.by_tile else tokens, ceil_div(stride, shrink.width), packed.slices * splits)
    start.launch_kernel(shrink.file, dtype, shrink.name, grid, shrink.threads, arguments)
    spread = ceil_div(packed.widest, expand.width)
    if expand.name != "lora_expand_v1":
        spread = min(spread, launch.spread)
    grid = (tiles if expand.by_tile else tokens, spread, packed.slices)
    smem = (TILE + expand.width) * (ceil_div(stride, 16) * 16 + 8) * 2 if expand.name == "sgmv_expand_v3" else 0
    start.launch_kernel(expand.file, dtype, expand.name, grid, expand.threads, arguments, smem)


def _check(y: Array, x: Array, packed: PackedLora, column: LoraColumn) -> None:
    """LoracleError for what does not fit together. That ids are slots of the batch's adapters was checked with it."""
    tokens, lookup = len(column.adapter_ids), x.dtype.kind == "i"
    check_array("y", y, packed.dtype)
    check_array("x", x, "int32" if lookup else packed.dtype)
    if len(y) != tokens:
        raise LoracleError(f"y has {len(y)} rows, the mapping {tokens}")
    if y.shape[1] < packed.columns:
        raise LoracleError(f"y has {y.shape[1]} columns; the slices have {packed.columns}")
    if x.shape != ((tokens,) if lookup else (tokens, packed.d_in)):
        raise LoracleError(f"y has {tokens} rows, x is {x.shape}; d_in {packed.d_in}")
    check_adapter_ids(column.adapter_ids, packed.adapters)
    if lookup and isinstance(x, np.ndarray):  # on a GPU this would wait for the device: check_batch has done it
        rows = column.sorted_rows
        used = x[rows[packed.ranks.max(axis=0)[column.adapter_ids[rows]] > 0]]
        wrong = used[(used < 0) | (used >= packed.d_in)]
        if wrong.size:
            raise LoracleError(f"token id {wrong[0]} is out of range: A has {packed.d_in} columns")


def _arguments(y: Array, x: Array, packed: PackedLora, column: LoraColumn, splits: int) -> dict[str, Any]:
    """By the names that the kernels' parameters have. column: the copy that lies where the kernels read."""
    tokens, stride = y.shape[0], packed.max_rank
    table, gains = packed.page_table, packed.gains
    paging = {} if table is None else {"page_table": table.rows, "page_starts": table.starts, "page_width": table.width}
    return paging | {
        "y": y,
        "x": x,
        "token_ids": x,
        "Ax": start.empty(namespace(y), (splits, packed.slices, tokens, stride), np.float32),
        "weights": packed.weights,
        "pages": packed.weights,
        "offsets": packed.offsets,
        "ranks": packed.ranks,
        "scales": packed.scales,
        "gains": gains and gains.numbers,
        "gain_starts": gains and gains.starts,
        "slice_starts": packed.slice_starts,
        "adapter_ids": column.adapter_ids,
        "adapter_weights": column.adapter_weights,
        "rows": column.sorted_rows,
        "chunk_starts": column.tile_starts,
        "tokens": tokens,
        "adapters": packed.adapters,
        "d_in": packed.d_in,
        "y_stride": y.shape[1],
        "Ax_stride": stride,
        "splits": splits,
    }
