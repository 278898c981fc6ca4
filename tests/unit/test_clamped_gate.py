"""gpt-oss's activation, against its formula, one number at a time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.arrays import Precision, rounded
from refimpl.config import ClampedGate
from refimpl.layers import mlp_activation

numbers = st.floats(-1e4, 1e4)


@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), alpha=st.sampled_from([1.702, 0.9]))
def test_it_is_its_formula(pairs: list[tuple[float, float]], alpha: float) -> None:
    gate, up = np.array(pairs).T[:, :, None]
    y = mlp_activation(gate, up, ClampedGate(alpha, 7.0), Precision("model", "float64"))
    for (one, other), actual in zip(pairs, y[:, 0], strict=True):
        clamped, factor = min(one, 7.0), max(-7.0, min(other, 7.0)) + 1
        expected = factor * clamped / (1 + math.exp(min(-alpha * clamped, 700)))
        assert actual == pytest.approx(expected, rel=1e-12, abs=1e-290)


def test_only_the_upper_end_of_the_gate_is_clamped() -> None:
    gate, up = np.array([[-9.0, -9.0, 9.0, 7.0]]), np.array([[9.0, -9.0, 0.0, 0.0]])
    y = mlp_activation(gate, up, ClampedGate(), Precision("model", "float64"))[0]
    sigmoid = 1 / (1 + math.exp(1.702 * 9))
    np.testing.assert_allclose(y[:2], [8 * -9 * sigmoid, -6 * -9 * sigmoid], rtol=1e-14)
    assert y[2] == y[3]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_type_is_rounded_after_every_operation(dtype: str) -> None:
    rng, p = np.random.default_rng(0), Precision("transformers", dtype)
    gate, up = (rounded(6 * rng.standard_normal((5, 9)).astype(np.float32), dtype) for _ in range(2))

    def r(x: np.ndarray) -> np.ndarray:
        return rounded(np.asarray(x, np.float32), dtype)

    y = mlp_activation(gate, up, ClampedGate(), p)
    for t, j in np.ndindex(y.shape):
        clamped = np.minimum(gate[t, j], np.float32(7))
        factor = r(np.clip(up[t, j], np.float32(-7), np.float32(7)) + 1)
        sigmoid = r(1 / (1 + np.exp(-r(np.float32(1.702) * clamped))))
        assert y[t, j] == r(factor * r(clamped * sigmoid))
