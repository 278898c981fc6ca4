"""kv_write.cu and paged_attention.cu."""

import math

import numpy as np

from ...arrays import Array, Float, Int, namespace
from ...errors import LoracleError
from . import start as begin
from .checks import check_array, check_context, check_plan, check_slots
from .start import ENOUGH_BLOCKS, STORED, ceil_div, on_device, start

MAX_HEAD_DIM = 256  # of paged_attention.cu: the channels that one warp holds in registers
SHARED_MEMORY = 40 * 1024  # bytes of scores that attention_v1 may keep; every GPU has 48 kB


def write_kv(
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    slot_mapping: Int[Array, " tokens"],
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
    check_plan("slot_mapping", slot_mapping, tokens)
    check_slots(slot_mapping.tobytes(), k_cache.shape[0] * k_cache.shape[1])
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
        "slot_mapping": on_device(slot_mapping, namespace(k)),
        "width": width,
    }
    start("kv_write.cu", f"{dtype}/{cache}", f"write_kv_v{version}", grid, 128, arguments)


def attention(
    q: Float[Array, "tokens heads head_dim"],
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    query_start_loc: Int[Array, " starts"],
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
    check_plan("query_start_loc", query_start_loc, len(context_lens) + 1)
    check_plan("context_lens", context_lens, len(query_start_loc) - 1)
    if block_tables.dtype != np.int32 or block_tables.ndim != 2 or len(block_tables) != len(context_lens):
        raise LoracleError(
            f"block_tables must be int32 [requests, table], not {block_tables.dtype} {block_tables.shape}"
        )
    plan = (query_start_loc.tobytes(), context_lens.tobytes(), block_tables.tobytes())
    check_context(*plan, block_tables.shape[1], tokens, blocks, block_size, window or 0)

    xp = namespace(q)
    out = begin.room(xp, (tokens, heads * head_dim), q.dtype)
    if tokens == 0:
        return out
    longest = int(context_lens.max()) if window is None else min(int(context_lens.max()), window)
    if version == 0:
        version, splits = choose_attention(tokens * heads, longest, round_probabilities)
    requests = np.repeat(np.arange(len(context_lens), dtype=np.int32), np.diff(query_start_loc))
    arguments = {
        "out": out,
        "q": q,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "requests": on_device(requests, xp),
        "query_start_loc": on_device(query_start_loc, xp),
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
        arguments["parts"] = begin.room(xp, (splits, tokens, heads, head_dim + 2), np.float32)
        start(file, types, "attention_v3", (tokens, heads, splits), 128, arguments)
        start(file, types, "attention_merge", grid, 128, arguments)
    return out


def choose_attention(queries: int, longest: int, round_probabilities: bool) -> tuple[int, int]:
    """(version, splits) for so many (token, head) pairs, of which the one that sees most sees `longest` keys."""
    splits = min(ceil_div(ENOUGH_BLOCKS, queries), ceil_div(longest, 128), 64)
    return (1, 1) if round_probabilities else (3, splits) if splits > 1 else (2, 1)


def cache_type(cache: Array, dtype: str) -> str:
    """The cache is of the type of what is written to it, or float32."""
    return "float32" if cache.dtype == np.float32 else dtype
