"""Vectors of the paged KV cache: where a token's key and value are written, and attention through the block table.

The caches are full of signed numbers before anything is written, so that whatever is read from, or written to, the
wrong place shows. Blocks lie scattered, and in no order.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array, Precision, ceil_div
from ...attention import attention_per_token, visible
from ...config import View
from ...kv_cache import NO_BLOCK, write_kv_per_token
from ...plans import AttentionMetadata, slot_mapping
from .bounds import attention_row
from .draw import signed
from .units import attention_orders, attention_precisions, noise
from .vector import VECTOR_DTYPES, Noise, Output, Vector

CACHE_AXES = ("blocks", "block_size", "kv_heads", "head_dim")
PLAN_AXES = {"query_starts": ("starts",), "context_lens": ("requests",), "block_tables": ("requests", "table")}


@dataclass(frozen=True)
class Spec:
    """One vector, before its numbers are drawn. requests: (tokens in the context, new ones of them)."""

    name: str
    comment: str
    bugs: tuple[str, ...]
    requests: Sequence[tuple[int, int]]
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 8
    block_size: int = 4
    spare: int = 3  # blocks that nobody has
    window: int | None = None
    result: str = "valid"
    size: float = 1.0  # of q: with large ones the scores are large
    poison: bool = False  # what no token may see is NaN
    slid: bool = False  # blocks that the window has passed are gone from the table
    slots: Sequence[int] | None = None  # in place of those that the block tables give
    stray: int | None = None  # a block number put into a table where it is needed


def make_write(spec: Spec, rng: np.random.Generator) -> Vector:
    """A vector of kv_write: the two caches after it, bit for bit."""
    plan = _plan(spec, rng)
    blocks = _blocks(spec)
    tokens = int(plan["query_starts"][-1])
    size = (blocks, spec.block_size, spec.kv_heads, spec.head_dim)
    inputs = {
        "k": signed(rng, tokens, spec.kv_heads, spec.head_dim),
        "v": signed(rng, tokens, spec.kv_heads, spec.head_dim),
        "k_cache": signed(rng, *size),
        "v_cache": signed(rng, *size),
    }
    axes = {
        "k": ("tokens", "kv_heads", "head_dim"),
        "v": ("tokens", "kv_heads", "head_dim"),
        "k_cache": CACHE_AXES,
        "v_cache": CACHE_AXES,
        "slots": ("tokens",),
    }
    if spec.slots is None:
        inputs |= plan | {
            "slots": slot_mapping(plan["block_tables"], _positions(plan), plan["query_starts"], spec.block_size)
        }
        axes |= PLAN_AXES
    else:
        inputs["slots"] = np.asarray(spec.slots, np.int32)
    v = Vector(spec.name, "kv_write", spec.result, spec.comment, spec.bugs, inputs, axes)
    if spec.result == "invalid":
        return v
    truth = {name: inputs[name].copy() for name in ("k_cache", "v_cache")}
    used = np.flatnonzero(inputs["slots"] >= 0)
    write_kv_per_token(
        truth["k_cache"],
        truth["v_cache"],
        inputs["k"][used],
        inputs["v"][used],
        write_metadata(inputs["slots"][used], blocks, spec.block_size),
        Precision(),
    )
    nothing = np.zeros((1, 1, 1, 1), np.float32)  # copied: no number may be off at all
    outputs = {
        name: Output(
            CACHE_AXES, x, dict.fromkeys(VECTOR_DTYPES, nothing), dict.fromkeys(VECTOR_DTYPES, Noise(0.0, 0.0))
        )
        for name, x in truth.items()
    }
    return Vector(**{**vars(v), "outputs": outputs})


def make_attention(spec: Spec, rng: np.random.Generator) -> Vector:
    """A vector of attention: what each token's heads say."""
    plan = _plan(spec, rng)
    tokens = int(plan["query_starts"][-1])
    size = (_blocks(spec), spec.block_size, spec.kv_heads, spec.head_dim)
    inputs = {
        "q": signed(rng, tokens, spec.heads, spec.head_dim, size=spec.size),
        "k_cache": signed(rng, *size),
        "v_cache": signed(rng, *size),
        **plan,
    }
    axes = {"q": ("tokens", "heads", "head_dim"), "k_cache": CACHE_AXES, "v_cache": CACHE_AXES, **PLAN_AXES}
    about = {"window": spec.window, "scale": 1 / math.sqrt(spec.head_dim)}
    if spec.poison:
        visible_slots = np.zeros(size[:2], bool)
        for _, where in visible(_metadata(spec, plan), spec.window):
            visible_slots[tuple(np.transpose(where))] = True
        inputs["k_cache"][~visible_slots] = inputs["v_cache"][~visible_slots] = np.nan
    v = Vector(spec.name, "attention", spec.result, spec.comment, spec.bugs, inputs, axes, about=about)
    if spec.result == "invalid":
        return v

    def run(step: Callable[..., Array], p: Precision) -> Array:
        q, k, values = (inputs[name].astype(p.compute) for name in ("q", "k_cache", "v_cache"))
        return step(q, k, values, _metadata(spec, plan), View(spec.window), p).astype(np.float64)

    truth = run(attention_per_token, Precision("model", "float64"))
    bounds = {dtype: _bound(v, spec, dtype) for dtype in VECTOR_DTYPES}
    units = {
        dtype: noise(
            [run(step, p) for p in attention_precisions(dtype) for step in attention_orders()], truth, bounds[dtype]
        )
        for dtype in VECTOR_DTYPES
    }
    return Vector(**{**vars(v), "outputs": {"out": Output(("tokens", "heads*head_dim"), truth, bounds, units)}})


def _metadata(spec: Spec, plan: Mapping[str, Array]) -> AttentionMetadata:
    starts, contexts, tables = (plan[name] for name in PLAN_AXES)
    return AttentionMetadata.of(starts, contexts, tables, np.zeros(0, np.int32), _blocks(spec), spec.block_size)


def write_metadata(slots: Array, blocks: int, block_size: int) -> AttentionMetadata:
    """The metadata of tokens that are only written, to these slots."""
    nothing = np.zeros(0, np.int32)
    return AttentionMetadata.of(np.zeros(1, np.int32), nothing, nothing[:, None], slots, blocks, block_size)


def _bound(v: Vector, spec: Spec, dtype: str) -> Array:
    q, k, values = (v.inputs[name].astype(np.float64) for name in ("q", "k_cache", "v_cache"))
    bound = np.zeros(q.shape, np.float32)
    for t, where in visible(_metadata(spec, v.inputs), spec.window):
        at = tuple(np.transpose(where))
        for h in range(spec.heads):
            kv_head = h // (spec.heads // spec.kv_heads)
            bound[t, h] = attention_row(q[t, h], k[at][:, kv_head], values[at][:, kv_head], dtype)
    return bound.reshape(len(q), -1).max(axis=1, keepdims=True)


def _blocks(spec: Spec) -> int:
    return sum(ceil_div(context, spec.block_size) for context, _ in spec.requests) + spec.spare


def _plan(spec: Spec, rng: np.random.Generator) -> dict[str, Array]:
    """Block tables whose blocks were handed out in no order; -1 where there is none."""
    counts = [ceil_div(context, spec.block_size) for context, _ in spec.requests]
    order = rng.permutation(_blocks(spec)).astype(np.int32)
    while sum(counts) > 1 and (np.diff(order[: sum(counts)]) == 1).all():  # side by side: a table could be ignored
        order = rng.permutation(_blocks(spec)).astype(np.int32)
    tables = np.full((len(counts), max(counts)), NO_BLOCK, np.int32)
    for r, (n, start) in enumerate(zip(counts, np.cumsum([0, *counts]), strict=False)):
        tables[r, :n] = order[start : start + n]
        if spec.slid and spec.window:
            context, new = spec.requests[r]
            tables[r, : max(0, context - new - spec.window + 1) // spec.block_size] = NO_BLOCK
    if spec.stray is not None:
        tables[0, 1] = spec.stray
    return {
        "query_starts": np.concatenate([[0], np.cumsum([n for _, n in spec.requests])]).astype(np.int32),
        "context_lens": np.asarray([context for context, _ in spec.requests], np.int32),
        "block_tables": tables,
    }


def _positions(plan: dict[str, Array]) -> Array:
    counts = np.diff(plan["query_starts"])
    return np.concatenate(
        [
            np.arange(context - n, context, dtype=np.int32)
            for context, n in zip(plan["context_lens"], counts, strict=True)
        ]
    )
