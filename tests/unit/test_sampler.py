"""One row of logits -> one token."""

import numpy as np
import pytest

from refimpl import Request
from refimpl.sampler import probabilities, sample, uniform

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3]))


def test_greedy_takes_the_largest() -> None:
    assert sample(LOGITS, Request([1]), 0) == 1


def test_temperature_sharpens_or_flattens() -> None:
    np.testing.assert_allclose(probabilities(LOGITS, 1.0), [0.1, 0.4, 0.2, 0.3])
    squared = np.array([0.01, 0.16, 0.04, 0.09])
    np.testing.assert_allclose(probabilities(LOGITS, 0.5), squared / squared.sum())


def test_top_k_keeps_the_k_largest_and_what_ties_with_the_last() -> None:
    np.testing.assert_allclose(probabilities(LOGITS, 1.0, top_k=2), [0, 4 / 7, 0, 3 / 7])
    np.testing.assert_allclose(probabilities(np.zeros(3), 1.0, top_k=1), [1 / 3] * 3)
    np.testing.assert_allclose(probabilities(LOGITS, 1.0, top_k=9), [0.1, 0.4, 0.2, 0.3])


@pytest.mark.parametrize(("top_p", "kept"), [(0.05, [1]), (0.39, [1]), (0.5, [1, 3]), (0.75, [1, 2, 3]), (0.95, None)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[int] | None) -> None:
    p = probabilities(LOGITS, 1.0, top_p=top_p)
    assert np.flatnonzero(p).tolist() == (kept or [0, 1, 2, 3])
    assert p.sum() == pytest.approx(1)


def test_top_p_counts_what_top_k_has_left() -> None:
    assert np.flatnonzero(probabilities(LOGITS, 1.0, top_k=2, top_p=0.57)).tolist() == [1]


def test_a_token_without_probability_is_never_drawn() -> None:
    masked = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf])
    drawn = {sample(masked, Request([1], temperature=1.0, seed=s), s) for s in range(50)}
    assert drawn == {1, 3}


def test_draws_follow_the_probabilities() -> None:
    drawn = [sample(LOGITS, Request([1], temperature=1.0, seed=7), step) for step in range(2000)]
    np.testing.assert_allclose(np.bincount(drawn) / 2000, [0.1, 0.4, 0.2, 0.3], atol=0.04)


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    assert uniform(3, 5) == uniform(3, 5)
    assert len({uniform(seed, step) for seed in (0, 1, -1, 2**70 + 1) for step in range(5)}) == 15  # 1 is 2**70 + 1
    assert all(0 <= uniform(seed, 0) < 1 for seed in range(100))


@pytest.mark.parametrize("temperature", [1e-310, 5e-324, 1e-300])
def test_a_temperature_that_is_nearly_zero_is_greedy(temperature: float) -> None:
    logits = np.array([-3.0, 2.0, 700.0, 699.0], np.float32)
    for seed in range(20):
        assert sample(logits, Request([1], temperature=temperature, seed=seed), 0) == 2
    p = probabilities(logits, temperature)
    assert p.tolist() == [0, 0, 1, 0]


def test_what_is_certain_is_drawn() -> None:
    p = probabilities(np.array([0.0, np.inf, 1.0, np.inf], np.float32), 0.7)
    assert p.tolist() == [0, 0.5, 0, 0.5]
