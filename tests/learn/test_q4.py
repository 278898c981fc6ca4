"""The course's four bits: no number moves by more than half a step, and what has been quantised stays as it is."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refimpl.learn import voices
from refimpl.learn.q4 import GROUP, LARGEST, dequantise, quantise, rounded_to_q4

weights = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 5, 32])).flatmap(
    lambda sizes: st.tuples(
        arrays(
            np.float64,
            (sizes[0], sizes[1] * sizes[2]),
            elements=st.floats(-100, 100).filter(lambda x: abs(x) > 1e-9 or x == 0),
        ),
        st.just(sizes[2]),
    )
)


@given(weights)
def test_no_number_moves_by_more_than_half_a_step(case: tuple[np.ndarray, int]) -> None:
    W, group = case
    q, steps = quantise(W, group)
    assert q.dtype == np.int8 and np.abs(q).max() <= LARGEST and steps.shape == (len(W), W.shape[1] // group)
    step = np.repeat(steps, group, axis=1)
    assert (np.abs(dequantise(q, steps) - W) <= step * (0.5 + 1e-9)).all()


@given(weights)
def test_the_largest_number_of_a_group_and_zero_stay_as_they_are(case: tuple[np.ndarray, int]) -> None:
    W, group = case
    after = dequantise(*quantise(W, group))
    largest = np.abs(W.reshape(len(W), -1, group)).max(axis=2)
    np.testing.assert_allclose(np.abs(after.reshape(len(W), -1, group)).max(axis=2), largest, rtol=1e-12)
    assert (after[W == 0] == 0).all()


@given(weights)
def test_quantising_twice_changes_nothing_more(case: tuple[np.ndarray, int]) -> None:
    W, group = case
    once = dequantise(*quantise(W, group))
    np.testing.assert_allclose(dequantise(*quantise(once, group)), once, rtol=1e-12)


def test_a_model_in_four_bits_has_other_layers_and_the_same_embedding() -> None:
    model = voices.model()
    after = rounded_to_q4(model)
    assert after.embed_tokens is model.embed_tokens
    for layer, before in zip(after.layers, model.layers, strict=True):
        for name, linear in layer.linears.items():
            W = before.linears[name].weight
            assert W.shape[1] % GROUP == 0 and linear.weight.dtype == W.dtype
            assert 0.01 < np.linalg.norm(linear.weight - W) / np.linalg.norm(W) < 0.2
