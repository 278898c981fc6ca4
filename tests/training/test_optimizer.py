"""AdamW number by number, and the learning rate step by step."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.training.arguments import TrainingArguments
from refimpl.training.optimizer import adamw, clipped, global_norm, learning_rate_at
from refimpl.training.parameters import Key

KEYS = [Key((0, "q_proj"), "A"), Key((0, "q_proj"), "bias")]


def adamw_of_one_number(x: float, gradients: list[float], rate: float, decay: float, b1: float, b2: float) -> float:
    """The algorithm as the paper has it, in bias-corrected moments (Loshchilov & Hutter 2019, algorithm 2)."""
    first = v = 0.0
    for t, gradient in enumerate(gradients, 1):
        first, v = b1 * first + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        x -= rate * (first / (1 - b1**t) / (math.sqrt(v / (1 - b2**t)) + 1e-8) + decay * x)
    return x


@given(seed=st.integers(0, 999), steps=st.integers(1, 5), decay=st.sampled_from([0.0, 0.3]))
def test_adamw_is_the_paper_s(seed: int, steps: int, decay: float) -> None:
    rng = np.random.default_rng(seed)
    arguments = TrainingArguments(weight_decay=decay, adam_beta1=0.8, adam_beta2=0.9)
    start = {key: rng.standard_normal(3) for key in KEYS}
    gradients = [{key: rng.standard_normal(3) for key in KEYS} for _ in range(steps)]
    parameters, moments = start, ({key: np.zeros(3) for key in KEYS}, {key: np.zeros(3) for key in KEYS})
    for step, gradient in enumerate(gradients, 1):
        parameters, moments = adamw(parameters, gradient, moments, step, 0.1, arguments)
    for key in KEYS:
        for i in range(3):
            series, of_key = [gradient[key][i] for gradient in gradients], 0.0 if key.part == "bias" else decay
            expected = adamw_of_one_number(start[key][i], series, 0.1, of_key, 0.8, 0.9)
            assert parameters[key][i] == pytest.approx(expected, rel=1e-12)


def test_the_learning_rate_rises_and_falls() -> None:
    """10 steps, of which ceil(0.25 * 10) = 3 are warm-up; transformers starts at 0."""
    arguments = TrainingArguments(learning_rate=2.0, warmup_ratio=0.25, lr_scheduler_type="linear")
    rates = [learning_rate_at(step, 10, arguments) for step in range(10)]
    np.testing.assert_allclose(rates[:4], [0, 2 / 3, 4 / 3, 2])
    np.testing.assert_allclose(rates[3:], 2 * (1 - np.arange(7) / 7))
    cosine = [learning_rate_at(step, 10, replace(arguments, lr_scheduler_type="cosine")) for step in range(10)]
    assert cosine[:4] == rates[:4] and cosine[3] > cosine[6] > cosine[9] > 0
    np.testing.assert_allclose(cosine[3:], 1 + np.cos(np.pi * np.arange(7) / 7))
    constant = [learning_rate_at(step, 10, replace(arguments, lr_scheduler_type="constant")) for step in range(10)]
    assert constant[:4] == rates[:4] and set(constant[3:]) == {2.0}
    assert learning_rate_at(0, 1, replace(arguments, warmup_ratio=0.0)) == 2.0


def test_clipping_is_of_the_norm_over_all_parameters() -> None:
    gradients = {KEYS[0]: np.array([[3.0]]), KEYS[1]: np.array([4.0])}
    norm = global_norm(gradients)
    assert norm == 5 and clipped(gradients, norm, None) is gradients and clipped(gradients, norm, 5.1) is gradients
    shorter = clipped(gradients, norm, 1.0)
    assert global_norm(shorter) == pytest.approx(1, rel=1e-6)
    assert shorter[KEYS[1]] / shorter[KEYS[0]][0] == pytest.approx(4 / 3)
