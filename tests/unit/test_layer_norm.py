"""LayerNorm: the fast form is the definition, in every type, and the definition is the formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.arrays import Precision
from refimpl.layers import layer_norm, layer_norm_per_token

EPS = 1e-5


def rows(seed: int, tokens: int, width: int, parts: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows far from zero mean, and a weight with or without its bias."""
    rng = np.random.default_rng(seed)
    x = 3 + 2 * rng.standard_normal((tokens, width))
    weight = 1 + 0.3 * rng.standard_normal((parts, width))
    return x.astype(dtype), weight.astype(dtype)


@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(0, 5),
    width=st.integers(1, 40),
    parts=st.integers(1, 2),
    type_of_model=st.sampled_from(["float64", "float32", "bfloat16", "float16"]),
    preset=st.sampled_from(["model", "transformers"]),
)
def test_the_fast_form_is_the_definition(
    seed: int, tokens: int, width: int, parts: int, type_of_model: str, preset: str
) -> None:
    p = Precision(preset, type_of_model)
    x, weight = rows(seed, tokens, width, parts, p.compute)
    fast, slow = layer_norm(x, weight, EPS, p), layer_norm_per_token(x, weight, EPS, p)
    assert fast.dtype == slow.dtype == x.dtype and fast.shape == (tokens, width)
    step = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2**-6, "float16": 2**-9}[type_of_model]
    np.testing.assert_allclose(fast, slow, rtol=step, atol=4 * step)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_definition_is_the_formula(parts: int) -> None:
    x, weight = rows(1, 6, 11, parts, "float64")
    y = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + EPS) * weight[0]
    expected = y + weight[1] if parts == 2 else y
    np.testing.assert_allclose(
        layer_norm_per_token(x, weight, EPS, Precision("model", "float64")), expected, rtol=1e-12
    )


def test_a_row_of_one_number_repeated_becomes_the_bias() -> None:
    _, weight = rows(2, 1, 7, 2, "float64")
    y = layer_norm(np.full((2, 7), 1e3), weight, EPS, Precision("model", "float64"))
    np.testing.assert_allclose(y, np.tile(weight[1], (2, 1)), atol=1e-9)


def test_it_is_rounded_where_the_precision_says() -> None:
    x, weight = rows(3, 4, 9, 2, "float32")
    inner = layer_norm(x, weight, EPS, Precision("model", "bfloat16"))
    outer = layer_norm(x, weight, EPS, Precision("model", "bfloat16", norm_inner="float32"))
    exact = layer_norm(x, weight, EPS, Precision())
    for y in (inner, outer):
        assert 0 < np.abs(y - exact).max() < 2**-6 * np.abs(exact).max()
        assert not (y.view(np.uint32) & 0xFFFF).any()
    assert (inner != outer).any()
