"""The computed bounds: no honest run is outside, whatever its order of summation and its roundings; a small bug is."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.arrays import Precision, rounded
from refimpl.lora import lora_delta
from refimpl.oracle.vectors import bounds, step_lora
from refimpl.oracle.vectors.draw import on_grid, signed
from refimpl.oracle.vectors.units import lora_roundings
from refimpl.oracle.vectors.vector import VECTOR_DTYPES

SLOTS = {0: step_lora.Slot(3, 7.0), 1: step_lora.Slot(9, 5.0, rslora=True), 2: step_lora.Slot(1, 0.5, bias=True)}
REQUESTS = [((0,), 2), ((), 1), ((2,), 2), ((1, 0), 2)]


@pytest.mark.parametrize("dtype", VECTOR_DTYPES)
@given(seed=st.integers(0, 2**32 - 1), d_in=st.integers(1, 90), preset=st.integers(0, 4))
@settings(max_examples=15)
def test_honest_lora_products_are_inside(dtype: str, seed: int, d_in: int, preset: int) -> None:
    rng = np.random.default_rng(seed)
    spec = step_lora.Spec("x", "", (), SLOTS, REQUESTS, d_in=d_in, d_out=11, weights={0: -1.5})
    v = step_lora.make(spec, rng)
    out = v.outputs["y"]
    order = rng.permutation(d_in)
    roundings = lora_roundings(dtype)
    p, ops = roundings[preset % len(roundings)]
    found = step_lora.compute(
        v, p, lambda *call: lora_delta(*call, shrink=lambda x, A: x[:, order].copy() @ A[:, order].copy().T), ops
    )
    off = np.abs(rounded(found, dtype) - out.value)
    assert (off <= out.bound[dtype]).all()
    louder = step_lora.compute(v, Precision("model", "float64"), lambda y, *call: one_percent_more(y, *call))
    if dtype == "float32":  # a scale that is wrong by 1 % is outside, and rows without adapter have no bound at all
        assert (np.abs(louder - out.value) > out.bound[dtype]).any()
    assert (out.bound[dtype][2] == 0).all()


def one_percent_more(y: np.ndarray, *call: object) -> None:
    before = y.copy()
    lora_delta(y, *call)  # type: ignore[arg-type]
    y += 0.01 * (y - before)


@pytest.mark.parametrize("dtype", VECTOR_DTYPES)
@given(seed=st.integers(0, 2**32 - 1), keys=st.integers(1, 40), size=st.sampled_from([0.1, 1.0, 10.0]))
@settings(max_examples=25)
def test_honest_attention_is_inside(dtype: str, seed: int, keys: int, size: float) -> None:
    """Keys in any order, each rounding there or not."""
    rng = np.random.default_rng(seed)
    q, k, v = signed(rng, 8, size=size), signed(rng, keys, 8), signed(rng, keys, 8)
    truth = attend(q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), lambda x: x, lambda x: x)
    bound = bounds.attention_row(*(x.astype(np.float64) for x in (q, k, v)), dtype)
    order = rng.permutation(keys)
    steps = [(lambda x: rounded(np.asarray(x), dtype)) if rng.random() < 0.5 else (lambda x: x) for _ in range(2)]
    found = rounded(attend(q, k[order], v[order], *steps), dtype)
    assert (np.abs(found - truth) <= bound).all()


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, of_scores: object, of_probabilities: object) -> np.ndarray:
    scores = of_scores(of_scores(k @ q) * q.dtype.type(8**-0.5))  # type: ignore[operator]
    p = np.exp(scores - scores.max())
    return of_probabilities(p / p.sum()) @ v  # type: ignore[operator]


def test_a_bound_of_nothing_is_nothing() -> None:
    near = bounds.product(bounds.exact(np.zeros((1, 3))), bounds.exact(np.ones((2, 3))))
    assert (near.off == 0).all() and (near.rounded("float16").off == 2.0**-25).all()
    assert (dataclasses.replace(near, off=near.off + 1).plus(near).off == 1).all()


def test_the_grid_is_of_numbers_that_all_types_have() -> None:
    x = on_grid(np.array([1.0, -3.14159, 1e-9, -1e-9, 300.9]))
    assert x.tolist() == [1.0, -3.140625, 2.0**-14, -(2.0**-14), 300.0]
