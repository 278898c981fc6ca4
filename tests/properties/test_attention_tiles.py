"""Tiles and stacks of attention: each token in one tile, the definition's numbers, and no number of one request in
another one's, not even a NaN."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compare import assert_equal_to_rounding, assert_same_bits
from support.plans import metadata

from refimpl import NUMPY, Precision, tiles
from refimpl.arrays import DTYPES, rounded
from refimpl.attention import attention_per_token
from refimpl.config import View
from refimpl.layers import softmax_with_sinks
from refimpl.plans import AttentionMetadata

P = Precision("model", "float64")
BLOCK = 4


class Call(NamedTuple):
    """The arguments of one attention, and how many queries a tile and scores a stack has while it is computed."""

    q: np.ndarray
    k_cache: np.ndarray
    v_cache: np.ndarray
    plan: AttentionMetadata
    view: View
    queries_at_once: int
    scores_at_once: int

    def stacks(self) -> list[list[tiles.Tile]]:
        with self.cut():
            return tiles.stacks(self.plan.spans, self.view.window, self.q.shape[1], self.plan.block_size)

    def run(self) -> np.ndarray:
        with self.cut():
            return NUMPY.attention(self.q, self.k_cache, self.v_cache, self.plan, self.view, P)

    @contextmanager
    def cut(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "QUERIES_AT_ONCE", self.queries_at_once)
            patch.setattr(tiles, "SCORES_AT_ONCE", self.scores_at_once)
            yield


@st.composite
def calls(draw: st.DrawFn, at_least: int = 1) -> Call:
    """Ragged requests: decode steps, prompts and second halves of prompts, in blocks that lie anywhere."""
    contexts = draw(st.lists(st.integers(1, 19), min_size=at_least, max_size=5))
    lengths = [draw(st.one_of(st.just(1), st.integers(1, context))) for context in contexts]
    kv_heads, group, head_dim = (
        draw(st.sampled_from([1, 2])),
        draw(st.sampled_from([1, 3])),
        draw(st.sampled_from([1, 4])),
    )
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    counts = [-(-context // BLOCK) for context in contexts]
    blocks = rng.permutation(sum(counts)) if draw(st.booleans()) else np.arange(sum(counts))
    tables = np.full((len(contexts), max(counts)), -1, np.int32)
    for row, chosen in zip(tables, np.split(blocks, np.cumsum(counts)[:-1]), strict=True):
        row[: len(chosen)] = chosen
    k, v = rng.standard_normal((2, sum(counts), BLOCK, kv_heads, head_dim))
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Call(
        rng.standard_normal((sum(lengths), kv_heads * group, head_dim)),
        k,
        v,
        metadata(starts, np.array(contexts, np.int32), tables, k),
        View(
            draw(st.sampled_from([None, 1, 3, 8])),
            None,
            draw(st.sampled_from([None, 1.5])),
            draw(st.sampled_from([None, 3 * rng.standard_normal(kv_heads * group)])),
        ),
        draw(st.sampled_from([1, 2, 5, 64])),
        draw(st.sampled_from([1, 60, 300, 1 << 18])),
    )


@settings(max_examples=100)
@given(call=calls())
def test_every_token_is_in_one_tile_and_every_stack_is_small(call: Call) -> None:
    stacks = call.stacks()
    assert sorted(t for stack in stacks for tile in stack for t in range(tile.start, tile.stop)) == [
        *range(len(call.q))
    ]
    for stack in stacks:
        queries = sum(tile.queries for tile in stack)
        assert len(stack) == 1 or call.q.shape[1] * queries * stack[-1].keys <= call.scores_at_once
    widths = [tile.keys for stack in stacks for tile in stack]
    assert widths == sorted(widths)
    assert max(tile.queries for stack in stacks for tile in stack) <= call.queries_at_once


@settings(max_examples=200)
@given(call=calls())
def test_every_way_to_cut_a_batch_is_the_definition(call: Call) -> None:
    expected = attention_per_token(call.q, call.k_cache, call.v_cache, call.plan, call.view, P)
    assert_equal_to_rounding(call.run(), expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@settings(max_examples=100)
@given(
    call=calls(at_least=2), bad=st.sampled_from([np.nan, np.inf, -np.inf]), field=st.sampled_from("qkv"), data=st.data()
)
def test_what_is_not_finite_in_one_request_stays_there(call: Call, bad: float, field: str, data: st.DataObject) -> None:
    """The bits of all the others are those that they have beside a request of ordinary numbers."""
    before, sick = call.run(), data.draw(st.sampled_from(call.plan.spans))
    if field == "q":
        call.q[sick.start : sick.stop] = bad
    else:
        blocks = sick.blocks if isinstance(sick.blocks, np.ndarray) else np.arange(sick.blocks.start, sick.blocks.stop)
        (call.k_cache if field == "k" else call.v_cache)[blocks] = bad
    after = call.run()
    others = np.ones(len(call.q), bool)
    others[sick.start : sick.stop] = False
    assert_same_bits(after[others], before[others])
    if np.isnan(bad):  # an infinite score may be capped, or have no weight
        assert np.isnan(after[~others]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("preset", ["model", "transformers"])
@settings(max_examples=20)
@given(call=calls())
def test_sinks_in_half_types_are_the_definition(call: Call, preset: str, dtype: str) -> None:
    """Up to a rounding that falls to the other side: one unit of each probability, and one of the result."""
    p, heads = Precision(preset, dtype), call.q.shape[1]
    q, k, v = (rounded(x.astype(np.float32), dtype) for x in (call.q, call.k_cache, call.v_cache))
    view = replace(call.view, sinks=np.linspace(-2, 4, heads).astype(DTYPES[dtype]))
    actual, expected = (step(q, k, v, call.plan, view, p) for step in (NUMPY.attention, attention_per_token))
    unit = 2.0**-7 if dtype == "bfloat16" else 2.0**-10
    assert (np.abs(actual - expected) <= 2 * unit * (np.abs(v).max() + np.abs(expected))).all()
    assert_same_bits(actual, rounded(actual, dtype))


def test_a_sink_takes_its_share_whatever_scale_cap_and_window_are() -> None:
    """One key of score s: its value counts e^s / (e^s + e^sink), and that sink is the number itself."""
    q, k, v = np.full((1, 1, 1), 2.0), np.full((1, BLOCK, 1, 1), 3.0), np.ones((1, BLOCK, 1, 1))
    plan = metadata(np.array([0, 1], np.int32), np.array([2], np.int32), np.array([[0]], np.int32), k)
    for scale, cap, score in ((0.5, None, 3.0), (0.5, 1.5, 1.5 * np.tanh(2.0))):
        for sink in (-1.0, 0.0, 5.0, 600.0):
            view = View(1, scale, cap, np.array([sink]))
            for step in (NUMPY.attention, attention_per_token):
                assert step(q, k, v, plan, view, P)[0, 0] == pytest.approx(1 / (1 + np.exp(sink - score)), rel=1e-14)


def test_a_row_that_sees_nothing_is_all_the_sink() -> None:
    scores = np.array([[-np.inf, -np.inf], [0.0, -np.inf]])
    np.testing.assert_array_equal(softmax_with_sinks(scores, np.zeros((2, 1)), P), [[0, 0], [0.5, 0]])


def test_unwritten_slots_behind_the_last_key_of_a_request_are_not_read() -> None:
    """A block holds what an earlier request left there: here not a number."""
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 4, BLOCK, 1, 2))
    plan = metadata(np.array([0, 1, 2], np.int32), np.array([5, 6], np.int32), np.array([[0, 1], [2, 3]], np.int32), k)
    q = rng.standard_normal((2, 2, 2))
    expected = attention_per_token(q, k, v, plan, View(None), P)
    for cache in (k, v):
        cache[1, 1:] = cache[3, 2:] = np.nan
    assert_equal_to_rounding(NUMPY.attention(q, k, v, plan, View(None), P), expected)
