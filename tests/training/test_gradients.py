"""The parts of the backward pass that a small model does not reach: long requests, half types, wide gates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compare import assert_equal_to_rounding

from refimpl import layers
from refimpl.arrays import DTYPES, Precision
from refimpl.config import View
from refimpl.plans import AttentionMetadata
from refimpl.training import attention_gradients, gradients

EXACT = Precision("model", "float64")


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    window=st.sampled_from([None, 1, 2, 5]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    at_once=st.integers(1, 4),
    scale=st.sampled_from([None, 0.3]),
    cap=st.sampled_from([None, 1.5]),
    seed=st.integers(0, 99),
)
def test_attention_in_tiles_is_its_definition(
    lengths: list[int],
    window: int | None,
    kv_heads: int,
    group: int,
    at_once: int,
    scale: float | None,
    cap: float | None,
    seed: int,
) -> None:
    rng, head_dim, tokens = np.random.default_rng(seed), 4, sum(lengths)
    q, k, v = (rng.standard_normal((tokens, n, head_dim)) for n in (kv_heads * group, kv_heads, kv_heads))
    dy = rng.standard_normal((tokens, kv_heads * group * head_dim))
    metadata = one_block_each(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_gradients, "QUERIES_AT_ONCE", at_once)
        actual = attention_gradients.attention_vjp(dy, q, k, v, metadata, View(window, scale, cap), EXACT)
    expected = attention_gradients.attention_vjp_per_token(dy, q, k, v, metadata, View(window, scale, cap), EXACT)
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * max(1, np.abs(y).max()))


def one_block_each(lengths: list[int]) -> AttentionMetadata:
    """Whole prefills, each in a block of its own."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    size = max(lengths)
    slots = np.concatenate([r * size + np.arange(n) for r, n in enumerate(lengths)]).astype(np.int32)
    tables = np.arange(len(lengths), dtype=np.int32)[:, None]
    return AttentionMetadata.of(starts, np.asarray(lengths, np.int32), tables, slots, len(lengths), size)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_weight_of_a_half_type_is_widened_in_pieces(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, p = np.random.default_rng(0), Precision("model", "float32")
    weight, dy = rng.standard_normal((37, 11)).astype(DTYPES[dtype]), rng.standard_normal((5, 37)).astype(np.float32)
    monkeypatch.setattr(gradients, "WIDEN_AT_ONCE", 40)  # three rows at a time
    expected = gradients.linear_vjp_per_token(dy, weight, p)
    assert_equal_to_rounding(gradients.linear_vjp(dy, weight, p), expected, 1e-5)
    assert_equal_to_rounding(gradients.linear_vjp(dy, weight.astype(np.float32), p), expected, 1e-5)


@given(seed=st.integers(0, 99), tokens=st.integers(1, 12), vocab=st.integers(1, 5))
def test_the_rows_of_an_embedding_are_summed_by_id(seed: int, tokens: int, vocab: int) -> None:
    rng = np.random.default_rng(seed)
    ids, dy = rng.integers(0, vocab, tokens).astype(np.int32), rng.standard_normal((tokens, 3))
    expected = gradients.embed_weight_vjp_per_token(dy, ids, vocab)
    np.testing.assert_allclose(gradients.embed_weight_vjp(dy, ids, vocab), expected, rtol=1e-12, atol=1e-14)
    assert not gradients.embed_weight_vjp(dy, ids, vocab)[~np.isin(np.arange(vocab), ids)].any()


def test_a_gate_far_below_zero_has_no_gradient_and_no_warning() -> None:
    gate = np.array([[-1e4, -800.0, 0.0, 800.0, 1e4]], np.float32)
    dgate, dup = gradients.mlp_activation_vjp(np.ones_like(gate), gate, 2 * np.ones_like(gate), "silu", Precision())
    np.testing.assert_allclose(dgate, [[0, 0, 1, 2, 2]])
    np.testing.assert_allclose(dup, layers.mlp_activation(gate, np.ones_like(gate), "silu", Precision()))


def test_cross_entropy_of_large_logits_is_finite_and_its_gradient_sums_to_nothing() -> None:
    logits = np.array([[1000.0, -1000.0, 0.0], [3.0, 2.0, 1.0]])
    losses, gradient = gradients.cross_entropy(logits, np.array([1, 0]), np.array([0.5, 2.0]))
    np.testing.assert_allclose(losses, [1000.0, 2 * np.log(1 + np.exp(-1) + np.exp(-2))])
    np.testing.assert_allclose(gradient[0], [0.5, -0.5, 0], atol=1e-15)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-15)
