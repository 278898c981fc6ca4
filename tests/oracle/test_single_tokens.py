"""Attention of many single tokens at once is the definition, whatever lies in the cache besides."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.compare import assert_equal_to_rounding

from refimpl import Precision
from refimpl.attention import attention_per_token
from refimpl.config import View
from refimpl.oracle.causes import single_tokens
from refimpl.plans import AttentionMetadata

P = Precision("model", "float64")


@given(
    contexts=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    new=st.sampled_from([1, 1, 2]),
    at_once=st.integers(1, 8),
    group=st.sampled_from([1, 3]),
    window=st.sampled_from([None, 1, 3, 8]),
    cap=st.sampled_from([None, 1.5]),
    has_sinks=st.booleans(),
    seed=st.integers(0, 999),
)
def test_it_is_the_definition(
    contexts: list[int],
    new: int,
    at_once: int,
    group: int,
    window: int | None,
    cap: float | None,
    has_sinks: bool,
    seed: int,
) -> None:
    rng, kv_heads, head_dim, value_dim = np.random.default_rng(seed), 2, 4, 3
    contexts = [max(context, new) for context in contexts]
    slots = rng.permutation(sum(contexts) + 5)
    tables = np.full((len(contexts), max(contexts)), -1, np.int32)
    for row, some in zip(tables, np.split(slots[: sum(contexts)], np.cumsum(contexts)[:-1]), strict=True):
        row[: len(some)] = some
    k = rng.standard_normal((len(slots), 1, kv_heads, head_dim))
    v = rng.standard_normal((len(slots), 1, kv_heads, value_dim))
    k[slots[sum(contexts) :]] = v[slots[sum(contexts) :]] = np.nan  # of nobody
    starts = np.arange(0, new * len(contexts) + 1, new).astype(np.int32)
    last = np.concatenate([row[context - new : context] for row, context in zip(tables, contexts, strict=True)])
    plan = AttentionMetadata.of(starts, np.array(contexts, np.int32), tables, last, len(slots), 1)
    q = rng.standard_normal((new * len(contexts), kv_heads * group, head_dim))
    view = View(window, None, cap, rng.standard_normal(kv_heads * group) if has_sinks else None)
    before, single_tokens.AT_ONCE = single_tokens.AT_ONCE, at_once
    try:
        actual = single_tokens.attention_of_single_tokens(q, k, v, plan, view, P)
    finally:
        single_tokens.AT_ONCE = before
    assert_equal_to_rounding(actual, attention_per_token(q, k, v, plan, view, P))
