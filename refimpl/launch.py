"""One function per kernel: the plan is checked, then grid, block and arguments as they are, on a GPU or on a CPU.

Arrays lie as the kernels read them: contiguous, in the kernel's own type (`stored` makes them so; bfloat16 is the upper
half of a float32, kept as uint16). What a kernel computes, and why in that way, stands at the head of its .cu file; a
GPU checks nothing, so whatever a plan could do wrong is an error here, before the launch.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from . import runner
from .arrays import Array, Float, Int, namespace
from .errors import LoracleError
from .lora import NO_ADAPTER, LoraWeights

MAX_RANK = 256  # of lora.cu: what one block holds in shared memory
MAX_HEAD_DIM = 256  # of paged_attention.cu: the channels that one warp holds in registers
TILE = 16  # tokens of one chunk in SGMV
ENOUGH_BLOCKS = 256  # two for each multiprocessor of a large GPU; with fewer, work is split further
FULL = 2048  # as many as such a GPU runs at a time: what keeps memory busy where each block waits for its loads
SHARED_MEMORY = 40 * 1024  # bytes of scores that attention_v1 may keep; every GPU has 48 kB

STORED: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}


def stored(x: Array, dtype: str) -> Array:
    """The numbers of a float32 array as a kernel of this type reads them: contiguous, rounded to nearest even."""
    xp = namespace(x)
    if dtype == "bfloat16":
        bits = xp.ascontiguousarray(x, np.float32).view(np.uint32)
        nearest = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
        return xp.where(xp.isnan(x), np.uint32(0x7FC0), nearest).astype(np.uint16)
    with np.errstate(over="ignore"):  # beyond 65504 a float16 is inf
        return xp.ascontiguousarray(x, STORED[dtype])


def widened(x: Array, dtype: str) -> Array:
    """A kernel's numbers as a float32 array; no copy where they are that already."""
    return (x.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else x.astype(np.float32, copy=False)


_checked: ContextVar[list | None] = ContextVar("checked", default=None)


@contextlib.contextmanager
def checked() -> Iterator[list]:
    """Inside, every launch runs under the checker; the list gets (kernel, bytes that each argument moved) of each."""
    launches: list = []
    token = _checked.set(launches)
    try:
        yield launches
    finally:
        _checked.reset(token)


_recorded: ContextVar[list | None] = ContextVar("recorded", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list]:
    """Inside, every launch is noted down as (kernel, a function that launches it again with the same arguments)."""
    launches: list = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def start(
    file: str,
    dtype: str,
    kernel: str,
    grid: tuple[int, int, int],
    block: int,
    arguments: Mapping[str, Any],
    smem: int = 0,
) -> None:
    """Launch a kernel; each of its parameters gets the argument of the same name."""
    launches = _checked.get()
    module = runner.load(file, dtype, check=launches is not None)
    again = partial(
        module.launch, kernel, grid, (block, 1, 1), [arguments[p.name] for p in module.kernels[kernel]], smem
    )
    moved = again()
    if launches is not None:
        launches.append((kernel, moved))
    if (noted := _recorded.get()) is not None:
        noted.append((kernel, again))


def on_device(plan: Array, xp: Any) -> Array:
    """A plan where the kernel can read it; the copy is kept, for a batch has the same plans in every layer."""
    return plan if xp is np else _uploaded(plan.tobytes(), plan.dtype.str, plan.shape, xp)


@lru_cache(maxsize=256)
def _uploaded(numbers: bytes, dtype: str, shape: tuple[int, ...], xp: Any) -> Array:
    return xp.asarray(np.frombuffer(numbers, dtype).reshape(shape))


def room(xp: Any, shape: Sequence[int], dtype: Any) -> Array:
    """Memory for what a kernel writes, all of it; what it holds before means nothing (the tests fill it with NaN)."""
    return xp.empty(shape, dtype)


# ---- LoRA -----------------------------------------------------------------------------------------------------------


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

    @property
    def slices(self) -> int:
        """How many layers."""
        return int(self.ranks.shape[0])


def pack(
    slices: Sequence[Mapping[int, LoraWeights]], d_outs: Sequence[int], dtype: str, slots: int = 0, xp: Any = np
) -> PackedLora:
    """Lay the adapters (slot -> weights, for each slice) into one buffer. Nothing is padded to a common rank. There may
    be more slots than are filled here."""
    adapters = max(slots, 1 + max((slot for held in slices for slot in held), default=0))
    offsets = np.full((len(slices), adapters, 3), -1, np.int64)
    ranks = np.zeros((len(slices), adapters), np.int32)
    scales = np.zeros((len(slices), adapters), np.float32)
    parts: list[Array] = []
    size, align, widths = 0, 16 // STORED[dtype].itemsize, set()
    for s, (held, d_out) in enumerate(zip(slices, d_outs, strict=True)):
        for slot, w in held.items():
            rank, d_in = w.A.shape
            if slot < 0:
                raise LoracleError(f"adapter slot {slot} is negative")
            if not 1 <= rank <= MAX_RANK:
                raise LoracleError(f"adapter slot {slot}: rank {rank}; the kernels take ranks from 1 to {MAX_RANK}")
            if w.B.shape != (d_out, rank):
                raise LoracleError(f"adapter slot {slot}: B is {w.B.shape}, expected {(d_out, rank)}")
            widths.add(d_in)
            ranks[s, slot], scales[s, slot] = rank, w.scale
            for i, matrix in enumerate((w.A, w.B, w.bias)):
                if matrix is None:
                    continue
                offsets[s, slot, i] = size
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
    )


@lru_cache(maxsize=64)
def chunks(adapter_ids: bytes) -> tuple[Int[Array, " rows"], Int[Array, " edges"]]:
    """(rows, chunk_starts) for these int32 ids: the tokens sorted by adapter, -1 left out, in chunks of at most 16 that
    share one. The sort is stable, so a chunk's tokens lie together where a request's do."""
    ids = np.frombuffer(adapter_ids, np.int32)
    rows = np.argsort(ids, kind="stable").astype(np.int32)
    rows = rows[np.count_nonzero(ids == NO_ADAPTER) :]
    starts = [0]
    for a in np.unique(ids[rows]):
        run = int(np.count_nonzero(ids == a))
        starts += range(starts[-1] + TILE, starts[-1] + run, TILE)
        starts.append(int(np.searchsorted(ids[rows], a, side="right")))
    return rows, np.asarray(starts, np.int32)


@dataclass(frozen=True)
class Kernel:
    """How one kernel is launched: grid (tokens or chunks, numbers of its output / width, slices), and its block."""

    file: str
    name: str
    by_chunk: bool
    width: int
    threads: int
    can_split: bool = False


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
    )
}


@dataclass(frozen=True)
class LoraLaunch:
    """Which kernels, over how many blocks shrink splits K, and over how many at most expand spreads the columns."""

    shrink: str
    expand: str
    splits: int = 1
    spread: int = 1 << 15


def choose(tokens: int, adapters: int, rank: int, d_in: int, slices: int, dtype: str, round_rank: bool) -> LoraLaunch:
    """The dispatcher: `tokens` that have an adapter, among them so many different `adapters`, the largest rank.

    From four tokens per adapter on, a tile that is three quarters empty still reads the weights four times less often
    than one token after another would. Tensor cores take halves, and make low one of them."""
    shared = tokens >= 4 * adapters
    if shared:
        # ceil(tokens / 16) chunks at least, and up to one more for each further adapter
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
    adapter_ids: Int[Array, " tokens"],
    adapter_weights: Float[Array, " tokens"],
    round_rank: bool = False,
    round_delta: bool = False,
    launch: LoraLaunch | None = None,
) -> None:
    """y[t] += weight * scale * B (A x[t]), in place, for all slices; rows without an adapter are not touched.

    x is [tokens, d_in], or token ids [tokens] at the embedding. Without `launch` the dispatcher chooses."""
    tokens, columns = y.shape
    lookup = x.dtype.kind == "i"
    check_array("y", y, packed.dtype)
    check_array("x", x, "int32" if lookup else packed.dtype)
    check_plan("adapter_ids", adapter_ids, tokens)
    check_adapter_ids(adapter_ids, packed.adapters)
    if columns < packed.columns:
        raise LoracleError(f"y has {columns} columns; the slices have {packed.columns}")
    if x.shape != ((tokens,) if lookup else (tokens, packed.d_in)):
        raise LoracleError(f"y has {tokens} rows, x is {x.shape}; d_in {packed.d_in}")
    if lookup and tokens and not (x.min() >= 0 and x.max() < packed.d_in):
        wrong = x.min() if x.min() < 0 else x.max()
        raise LoracleError(f"token id {wrong} is out of range: A has {packed.d_in} columns")
    with_adapter = int(np.count_nonzero(adapter_ids != NO_ADAPTER))
    if with_adapter == 0 or packed.max_rank == 0:
        return
    if launch is None:
        distinct = len(np.unique(adapter_ids[adapter_ids != NO_ADAPTER]))
        launch = choose(with_adapter, distinct, packed.max_rank, packed.d_in, packed.slices, packed.dtype, round_rank)
    if launch.expand == "sgmv_expand_v3" and not round_rank:
        raise LoracleError("sgmv_expand_v3 rounds the rank-r intermediate; where it is to stay float32, v2 must run")
    shrink, expand = KERNELS["lora_lookup" if lookup else launch.shrink], KERNELS[launch.expand]
    splits = launch.splits if shrink.can_split else 1
    xp, dtype, stride = namespace(y), packed.dtype, packed.max_rank
    rows, chunk_starts = chunks(adapter_ids.tobytes())
    arguments = {
        "y": y,
        "x": x,
        "token_ids": x,
        "low": room(xp, (splits, packed.slices, tokens, stride), np.float32),
        "weights": packed.weights,
        "offsets": packed.offsets,
        "ranks": packed.ranks,
        "scales": packed.scales,
        "slice_starts": packed.slice_starts,
        "adapter_ids": on_device(adapter_ids, xp),
        "adapter_weights": on_device(adapter_weights.astype(np.float32), xp),
        "rows": on_device(rows, xp),
        "chunk_starts": on_device(chunk_starts, xp),
        "tokens": tokens,
        "adapters": packed.adapters,
        "d_in": packed.d_in,
        "y_stride": columns,
        "low_stride": stride,
        "splits": splits,
        "round_rank": int(round_rank),
        "round_delta": int(round_delta),
    }
    n_chunks = len(chunk_starts) - 1
    grid = (n_chunks if shrink.by_chunk else tokens, ceil_div(stride, shrink.width), packed.slices * splits)
    start(shrink.file, dtype, shrink.name, grid, shrink.threads, arguments)
    spread = ceil_div(packed.widest, expand.width)
    if expand.name != "lora_expand_v1":
        spread = min(spread, launch.spread)
    grid = (n_chunks if expand.by_chunk else tokens, spread, packed.slices)
    smem = (TILE + expand.width) * (ceil_div(stride, 16) * 16 + 8) * 2 if expand.name == "sgmv_expand_v3" else 0
    start(expand.file, dtype, expand.name, grid, expand.threads, arguments, smem)


# ---- the KV cache ---------------------------------------------------------------------------------------------------


def write_kv(
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    slots: Int[Array, " tokens"],
    dtype: str,
    version: int = 2,
) -> None:
    """cache[slots[t]] = k[t], v[t]. The cache may be float32 where k and v are of a half type."""
    tokens, kv_heads, head_dim = k.shape
    cache = cache_type(k_cache, dtype)
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_array(name, x, cache)
    for name, x in (("k", k), ("v", v)):
        check_array(name, x, dtype)
    if k.shape != v.shape or k_cache.shape != v_cache.shape or k_cache.shape[2:] != k.shape[1:]:
        raise LoracleError(f"k {k.shape} and v {v.shape} do not fit caches {k_cache.shape} and {v_cache.shape}")
    check_plan("slots", slots, tokens)
    check_slots(slots.tobytes(), k_cache.shape[0] * k_cache.shape[1])
    if tokens == 0:
        return
    width = kv_heads * head_dim
    per_thread = 1 if version == 1 else 16 // STORED[dtype].itemsize
    grid = (tokens, ceil_div(width, 128 * per_thread), 1)
    arguments = {
        "k_cache": k_cache,
        "v_cache": v_cache,
        "k": k,
        "v": v,
        "slots": on_device(slots, namespace(k)),
        "width": width,
    }
    start("kv_write.cu", f"{dtype}/{cache}", f"write_kv_v{version}", grid, 128, arguments)


def attention(
    q: Float[Array, "tokens heads head_dim"],
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    query_starts: Int[Array, " starts"],
    context_lens: Int[Array, " requests"],
    block_tables: Int[Array, "requests table"],
    window: int | None,
    dtype: str,
    round_scores: bool = False,
    round_probabilities: bool = False,
    version: int = 0,
    splits: int = 0,
) -> Float[Array, "tokens heads*head_dim"]:
    """softmax(q k^T / sqrt(head_dim)) v through the block table. Version 0: whichever suits the batch."""
    (tokens, heads, head_dim), (blocks, block_size, kv_heads, _) = q.shape, k_cache.shape
    cache = cache_type(k_cache, dtype)
    check_array("q", q, dtype)
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_array(name, x, cache)
    if head_dim > MAX_HEAD_DIM:
        raise LoracleError(f"head_dim {head_dim}; the kernels take up to {MAX_HEAD_DIM}")
    if k_cache.shape != v_cache.shape or k_cache.shape[3] != head_dim or heads % kv_heads:
        raise LoracleError(f"q {q.shape} does not fit caches {k_cache.shape} and {v_cache.shape}")
    if window is not None and window < 1:
        raise LoracleError(f"window {window}: a token sees at least itself")
    check_plan("query_starts", query_starts, len(context_lens) + 1)
    check_plan("context_lens", context_lens, len(query_starts) - 1)
    if block_tables.dtype != np.int32 or block_tables.ndim != 2 or len(block_tables) != len(context_lens):
        raise LoracleError(
            f"block_tables must be int32 [requests, table], not {block_tables.dtype} {block_tables.shape}"
        )
    plan = (query_starts.tobytes(), context_lens.tobytes(), block_tables.tobytes())
    check_context(*plan, block_tables.shape[1], tokens, blocks, block_size, window or 0)

    xp = namespace(q)
    out = room(xp, (tokens, heads * head_dim), q.dtype)
    if tokens == 0:
        return out
    longest = int(context_lens.max()) if window is None else min(int(context_lens.max()), window)
    if version == 0:
        version, splits = choose_attention(tokens * heads, longest, round_probabilities)
    requests = np.repeat(np.arange(len(context_lens), dtype=np.int32), np.diff(query_starts))
    arguments = {
        "out": out,
        "q": q,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "requests": on_device(requests, xp),
        "query_starts": on_device(query_starts, xp),
        "context_lens": on_device(context_lens, xp),
        "block_tables": on_device(np.ascontiguousarray(block_tables), xp),
        "table": block_tables.shape[1],
        "block_size": block_size,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "window": window or 0,
        "scale": np.float32(1 / math.sqrt(head_dim)),
        "splits": splits,
        "round_scores": int(round_scores),
        "round_probabilities": int(round_probabilities),
    }
    file, types, grid = "paged_attention.cu", f"{dtype}/{cache}", (tokens, heads, 1)
    if version == 1:
        if 4 * longest > SHARED_MEMORY:
            raise LoracleError(
                f"attention_v1 keeps all scores of a token in shared memory: {longest} keys are too many"
            )
        start(file, types, "attention_v1", grid, 128, arguments, 4 * longest)
        return out
    if round_probabilities:
        raise LoracleError(f"attention_v{version} cannot round probabilities: it learns their sum after they were used")
    if version == 2:
        start(file, types, "attention_v2", grid, 128, arguments)
    else:
        arguments["parts"] = room(xp, (splits, tokens, heads, head_dim + 2), np.float32)
        start(file, types, "attention_v3", (tokens, heads, splits), 128, arguments)
        start(file, types, "attention_merge", grid, 128, arguments)
    return out


def choose_attention(queries: int, longest: int, round_probabilities: bool) -> tuple[int, int]:
    """(version, splits) for so many (token, head) pairs, of which the one that sees most sees `longest` keys."""
    splits = min(ceil_div(ENOUGH_BLOCKS, queries), ceil_div(longest, 128), 64)
    return (1, 1) if round_probabilities else (3, splits) if splits > 1 else (2, 1)


# ---- the small ones -------------------------------------------------------------------------------------------------


def embed(table: Float[Array, "vocab d_model"], token_ids: Int[Array, " tokens"], dtype: str) -> Array:
    """y[t] = table[token_ids[t]]."""
    tokens, (vocab, d_model) = len(token_ids), table.shape
    check_array("table", table, dtype)
    check_plan("token_ids", token_ids, tokens)
    if tokens and not (token_ids.min() >= 0 and token_ids.max() < vocab):
        raise LoracleError(f"token ids from {token_ids.min()} to {token_ids.max()}: the table has {vocab} rows")
    y = room(namespace(table), (tokens, d_model), table.dtype)
    arguments = {"y": y, "table": table, "token_ids": on_device(token_ids, namespace(table)), "d_model": d_model}
    start("layers.cu", dtype, "embed", (tokens, ceil_div(d_model, 128), 1), 128, arguments)
    return y


def rms_norm(x: Float[Array, "tokens d_model"], weight: Array, eps: float, dtype: str, inner: bool) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight; the weight is float32 whatever x is."""
    tokens, d_model = x.shape
    check_array("x", x, dtype)
    check_array("weight", weight, "float32")
    if weight.shape != (d_model,):
        raise LoracleError(f"weight is {weight.shape}, x {x.shape}")
    y = room(namespace(x), x.shape, x.dtype)
    arguments = {
        "y": y,
        "x": x,
        "weight": weight,
        "d_model": d_model,
        "eps": np.float32(eps),
        "round_inner": int(inner),
    }
    start("layers.cu", dtype, "rms_norm", (tokens, 1, 1), 128, arguments)
    return y


def rope(x: Float[Array, "tokens heads head_dim"], cos: Array, sin: Array, dtype: str, product: bool) -> Array:
    """Each pair (x[i], x[i + head_dim/2]) turned by its angle; cos and sin are float32."""
    tokens, heads, head_dim = x.shape
    check_array("x", x, dtype)
    for name, table in (("cos", cos), ("sin", sin)):
        check_array(name, table, "float32")
        if table.shape != (tokens, head_dim // 2) or head_dim % 2:
            raise LoracleError(f"{name} is {table.shape}, x {x.shape}")
    y = room(namespace(x), x.shape, x.dtype)
    arguments = {"y": y, "x": x, "cos": cos, "sin": sin, "heads": heads, "head_dim": head_dim}
    grid = (tokens, ceil_div(heads * head_dim // 2, 128), 1)
    start("layers.cu", dtype, "rope", grid, 128, {**arguments, "round_product": int(product)})
    return y


def mlp_activation(
    gate: Float[Array, "tokens d_mlp"], up: Float[Array, "tokens d_mlp"], dtype: str, inner: bool
) -> Array:
    """silu(gate) * up."""
    check_array("gate", gate, dtype)
    check_array("up", up, dtype)
    if gate.shape != up.shape or gate.size >= 2**31:
        raise LoracleError(f"gate is {gate.shape}, up {up.shape}")
    y = room(namespace(gate), gate.shape, gate.dtype)
    arguments = {"y": y, "gate": gate, "up": up, "count": gate.size, "round_inner": int(inner)}
    start("layers.cu", dtype, "mlp_activation", (ceil_div(gate.size, 128), 1, 1), 128, arguments)
    return y


# ---- what could be wrong with a plan --------------------------------------------------------------------------------


def ceil_div(a: int, b: int) -> int:
    """How many b it takes to cover a."""
    return -(-a // b)


def cache_type(cache: Array, dtype: str) -> str:
    """The cache is of the type of what is written to it, or float32."""
    return "float32" if cache.dtype == np.float32 else dtype


def check_array(name: str, x: Array, dtype: str) -> None:
    """Contiguous, and of the kernel's type: a kernel is given an address and believes the rest."""
    wanted = np.dtype(np.int32) if dtype == "int32" else STORED[dtype]
    same = x.dtype == wanted or (dtype == "bfloat16" and x.dtype.name == "bfloat16")
    if not same:
        raise LoracleError(f"{name} is {x.dtype.name}; this kernel was built for {dtype}")
    if not x.flags.c_contiguous:
        raise LoracleError(f"{name} of shape {x.shape} is not contiguous")


def check_plan(name: str, x: Array, length: int) -> None:
    """A plan is one row of int32 on the host."""
    if not isinstance(x, np.ndarray) or x.dtype != np.int32 or x.shape != (length,):
        raise LoracleError(f"{name} must be int32 of shape ({length},) on the host, not {x.dtype} of shape {x.shape}")


def check_adapter_ids(adapter_ids: Array, adapters: int) -> None:
    """An id out of range is another tenant's weights."""
    wrong = np.flatnonzero((adapter_ids < NO_ADAPTER) | (adapter_ids >= adapters))
    if wrong.size:
        t = wrong[0]
        raise LoracleError(f"adapter_ids[{t}] is {adapter_ids[t]}: the bank has slots 0 to {adapters - 1} (-1: none)")


@lru_cache(maxsize=64)
def check_slots(slots: bytes, capacity: int) -> None:
    """Each token has a slot of its own inside the cache. Memoised: a batch has the same slots in every layer."""
    numbers = np.frombuffer(slots, np.int32)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= capacity))
    if wrong.size:
        raise LoracleError(f"slots[{wrong[0]}] is {numbers[wrong[0]]}: the cache has slots 0 to {capacity - 1}")
    found, counts = np.unique(numbers, return_counts=True)
    if (counts > 1).any():
        first, second = np.flatnonzero(numbers == found[counts > 1][0])[:2]
        raise LoracleError(f"slot {numbers[first]} is owned twice: by token {first} and by token {second}")


@lru_cache(maxsize=64)
def check_context(
    query_starts: bytes,
    context_lens: bytes,
    block_tables: bytes,
    table: int,
    tokens: int,
    blocks: int,
    block_size: int,
    window: int,
) -> None:
    """Every key that a token sees is in a block of its request that exists."""
    starts, contexts = np.frombuffer(query_starts, np.int32), np.frombuffer(context_lens, np.int32)
    tables = np.frombuffer(block_tables, np.int32).reshape(len(contexts), table)
    counts = np.diff(starts)
    if starts[0] != 0 or starts[-1] != tokens or (counts < 0).any():
        raise LoracleError(f"query_starts must rise from 0 to the {tokens} tokens, not {starts.tolist()}")
    for r, (n, context) in enumerate(zip(counts, contexts, strict=True)):
        if context < n:
            raise LoracleError(f"request {r}: {n} new tokens in a context of {context}")
        if n == 0:
            continue
        if ceil_div(int(context), block_size) > table:
            raise LoracleError(
                f"request {r}: {context} tokens need {ceil_div(int(context), block_size)} blocks of {block_size}; its "
                f"block table has {table}"
            )
        first = 0 if window == 0 else max(0, context - n - window + 1)
        seen = tables[r, first // block_size : ceil_div(int(context), block_size)]
        wrong = seen[(seen < 0) | (seen >= blocks)]
        if wrong.size:
            raise LoracleError(f"request {r}: its block table names block {wrong[0]}; the cache has {blocks}")
