"""kv_write.cu and paged_attention.cu."""

import math
from typing import Any

import numpy as np

from ...arrays import Array, Float, namespace
from ...config import View
from ...errors import LoracleError
from ...plans import AttentionMetadata
from . import start
from .checks import check_array, check_cache
from .start import ENOUGH_BLOCKS, STORED, ceil_div

MAX_HEAD_DIM = 256  # of paged_attention.cu: the channels that one warp holds in registers
SHARED_MEMORY = 40 * 1024  # bytes of scores that attention_v1 may keep; every GPU has 48 kB


def write_kv(
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads value_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads value_dim"],
    metadata: AttentionMetadata,
    dtype: str,
    version: int = 2,
) -> None:
    """cache[slot_mapping[t]] = k[t], v[t]. The cache may be float32 where k and v are of a half type."""
    cache = cache_type(k_cache, dtype)
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_array(name, x, cache)
    for name, x in (("k", k), ("v", v)):
        check_array(name, x, dtype)
    check_cache(metadata, k_cache, v_cache)
    fits = k_cache.shape[2:] == k.shape[1:] and v_cache.shape[2:] == v.shape[1:]
    if not fits or not len(k) == len(v) == len(metadata.slot_mapping):
        raise LoracleError(f"k {k.shape} and v {v.shape} do not fit caches {k_cache.shape} and {v_cache.shape}")
    if len(k) == 0:
        return
    widths = (k[0].size, v[0].size)
    per_thread = 1 if version == 1 else 16 // STORED[dtype].itemsize
    grid = (len(k), ceil_div(max(widths), 128 * per_thread), 1)
    arguments = {
        "k_cache": k_cache,
        "v_cache": v_cache,
        "k": k,
        "v": v,
        "slot_mapping": metadata.device.slot_mapping,
        "k_width": widths[0],
        "v_width": widths[1],
    }
    start.launch_kernel("kv_write.cu", f"{dtype}/{cache}", f"write_kv_v{version}", grid, 128, arguments)


def attention(
    q: Float[Array, "tokens heads head_dim"],
    k_cache: Float[Array, "blocks block_size kv_heads head_dim"],
    v_cache: Float[Array, "blocks block_size kv_heads value_dim"],
    metadata: AttentionMetadata,
    view: View,
    dtype: str,
    round_scores: bool = False,
    round_probabilities: bool = False,
    version: int = 0,
    splits: int = 0,
) -> Float[Array, "tokens heads*value_dim"]:
    """softmax(scale * q k^T) v through the block table. The view's sinks, if any, are float32. Version 0: what suits
    the batch."""
    tokens, heads, _ = q.shape
    cache = _check(q, k_cache, v_cache, metadata, view, dtype)
    xp, value_dim = namespace(q), v_cache.shape[3]
    out = start.empty(xp, (tokens, heads * value_dim), q.dtype)
    if tokens == 0:
        return out
    longest = max(span.context for span in metadata.spans)
    longest = longest if view.window is None else min(longest, view.window)
    # What is rounded when the sum or the maximum of all scores is known: later than v2 and v3 have used them.
    afterwards = round_probabilities or (round_scores and view.sinks is not None)
    if version == 0:
        version, splits = choose_attention(tokens * heads, longest, afterwards)
    arguments = _arguments(out, q, k_cache, v_cache, metadata, view)
    arguments |= {
        "splits": splits,
        "round_scores": int(round_scores),
        "round_probabilities": int(round_probabilities),
    }
    file, types, grid = "paged_attention.cu", f"{dtype}/{cache}", (tokens, heads, 1)
    if version == 1:
        if 4 * longest > SHARED_MEMORY:
            raise LoracleError(
                f"attention_v1 keeps all scores of a token in shared memory: {longest} keys are too many; "
                'Precision("flash", dtype) keeps them in float32, and takes any number'
            )
        start.launch_kernel(file, types, "attention_v1", grid, 128, arguments, 4 * longest)
        return out
    if afterwards:
        what = "probabilities: it learns their sum" if round_probabilities else "beside sinks: it learns the maximum"
        raise LoracleError(f"attention_v{version} cannot round {what} after they were used")
    if version == 2:
        start.launch_kernel(file, types, "attention_v2", grid, 128, arguments)
    else:
        arguments["parts"] = start.empty(xp, (splits, tokens, heads, value_dim + 2), np.float32)
        start.launch_kernel(file, types, "attention_v3", (tokens, heads, splits), 128, arguments)
        start.launch_kernel(file, types, "attention_merge", grid, 128, arguments)
    return out


def _check(q: Array, k_cache: Array, v_cache: Array, metadata: AttentionMetadata, view: View, dtype: str) -> str:
    """The type of the cache. LoracleError for what does not fit together."""
    (tokens, heads, head_dim), cache = q.shape, cache_type(k_cache, dtype)
    check_array("q", q, dtype)
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_array(name, x, cache)
    if max(head_dim, v_cache.shape[3]) > MAX_HEAD_DIM:
        raise LoracleError(
            f"ops cuda: head_dim {max(head_dim, v_cache.shape[3])}; the kernels take up to {MAX_HEAD_DIM}"
        )
    check_cache(metadata, k_cache, v_cache)
    if k_cache.shape[3] != head_dim or heads % k_cache.shape[2] or len(metadata.requests) != tokens:
        raise LoracleError(f"q {q.shape} does not fit caches {k_cache.shape} and {v_cache.shape}")
    if view.sinks is not None:
        check_array("sinks", view.sinks, "float32")
        if view.sinks.shape != (heads,):
            raise LoracleError(f"sinks are {view.sinks.shape}, q {q.shape}")
    return cache


def _arguments(
    out: Array, q: Array, k_cache: Array, v_cache: Array, metadata: AttentionMetadata, view: View
) -> dict[str, Any]:
    """By the names that the kernels' parameters have."""
    plan = metadata.device
    return {
        "out": out,
        "q": q,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "requests": plan.requests,
        "query_start_loc": plan.query_start_loc,
        "context_lens": plan.context_lens,
        "block_tables": plan.block_tables,
        "table": metadata.block_tables.shape[1],
        "block_size": metadata.block_size,
        "heads": q.shape[1],
        "kv_heads": k_cache.shape[2],
        "head_dim": q.shape[2],
        "value_dim": v_cache.shape[3],
        "window": view.window or 0,
        "scale": np.float32(1 / math.sqrt(q.shape[2]) if view.scale is None else view.scale),
        "softcap": np.float32(view.softcap or 0),
        "sinks": view.sinks,
    }


def choose_attention(queries: int, longest: int, afterwards: bool) -> tuple[int, int]:
    """(version, splits) for so many (token, head) pairs, of which the one that sees most sees `longest` keys.

    afterwards: it rounds what only v1 can."""
    splits = min(ceil_div(ENOUGH_BLOCKS, queries), ceil_div(longest, 128), 64)
    return (1, 1) if afterwards else (3, splits) if splits > 1 else (2, 1)


def cache_type(cache: Array, dtype: str) -> str:
    """The cache is of the type of what is written to it, or float32."""
    return "float32" if cache.dtype == np.float32 else dtype
