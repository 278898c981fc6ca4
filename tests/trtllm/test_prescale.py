"""The two orders in which TensorRT-LLM's loaders prescale B, number by number, and where they differ."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.build import as_dtype, random_adapter, random_model
from support.compare import assert_same_bits

from refimpl import NUMPY, LoracleError, Precision
from refimpl.adapter_cache import AdapterCache
from refimpl.arrays import DTYPES
from refimpl.config import ModelConfig
from refimpl.tensorrt_llm.backend import backend
from refimpl.tensorrt_llm.prescale import prescale

HALF = ("bfloat16", "float16")
SCALAR = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}  # half an ulp of 1

every_half = pytest.mark.parametrize("dtype", HALF)
stored = pytest.mark.parametrize("checkpoint", ["float32", *HALF])
# alpha over r, and alpha over its root
scales = st.sampled_from([7 / 3, 1.1, 0.1, 16 / 5, -1.5, 11 / 5**0.5, 64 / 7, 1 / 3])
powers = st.sampled_from([0.125, 0.5, 1.0, 2.0, -4.0, 16.0])


def numbers(seed: int, dtype: str, count: int = 500) -> np.ndarray:
    """Of sizes around 0.05, as in B; none so small that a half type has fewer digits for it."""
    x = np.random.default_rng(seed).standard_normal(count) * 0.05
    return np.where(np.abs(x) < 1e-3, 0.05, x).astype(DTYPES[dtype])


def one_at_a_time(B: np.ndarray, scale: float, dtype: str, order: str) -> np.ndarray:
    """The definition with scalars. Python's product of two float32 numbers is exact, so it is rounded once to float32
    and, where the number is a half, once more, as torch does it."""
    D, T, found = SCALAR[B.dtype.name], SCALAR[dtype], []
    for b in B:
        if order == "convert":
            found.append(T(D(np.float32(float(b) * float(np.float32(scale))))))
        else:
            found.append(T(np.float32(float(T(b)) * float(np.float32(scale)))))
    return np.array(found, DTYPES[dtype])


@stored
@every_half
@pytest.mark.parametrize("order", ["convert", "manager"])
@given(seed=st.integers(0, 999), scale=scales)
def test_each_number_is_rounded_in_that_order(order: str, dtype: str, checkpoint: str, seed: int, scale: float) -> None:
    B = numbers(seed, checkpoint)
    assert_same_bits(prescale(B, scale, dtype, order), one_at_a_time(B, scale, dtype, order))


@every_half
@given(seed=st.integers(0, 999), scale=scales)
def test_where_the_checkpoint_has_the_models_type_they_are_one_formula(dtype: str, seed: int, scale: float) -> None:
    B = numbers(seed, dtype)
    assert_same_bits(prescale(B, scale, dtype, "convert"), prescale(B, scale, dtype, "manager"))


@stored
@every_half
@given(seed=st.integers(0, 999), scale=powers)
def test_a_power_of_two_commutes_with_every_rounding(dtype: str, checkpoint: str, seed: int, scale: float) -> None:
    B = numbers(seed, checkpoint)
    assert_same_bits(prescale(B, scale, dtype, "convert"), prescale(B, scale, dtype, "manager"))


@every_half
@given(seed=st.integers(0, 999), scale=scales)
def test_of_a_float32_checkpoint_the_manager_rounds_twice(dtype: str, seed: int, scale: float) -> None:
    """One rounding is half an ulp at most, two may be the sum; and more than half an ulp is seen, so they are two."""
    B = numbers(seed, "float32", 3000)
    exact = B.astype(np.float64) * scale
    off = {
        order: np.abs(prescale(B, scale, dtype, order).astype(np.float64) / exact - 1).max()
        for order in ("convert", "manager")
    }
    one = (1 + UNIT["float32"]) ** 2 * (1 + UNIT[dtype]) - 1  # the scale and the product, as float32 numbers
    assert off["convert"] <= one < off["manager"] <= (1 + one) * (1 + UNIT[dtype]) - 1


@given(seed=st.integers(0, 999), scale=scales)
def test_of_a_bfloat16_checkpoint_for_a_float16_model_it_is_the_converter(seed: int, scale: float) -> None:
    """There a cast to float16 loses nothing, but the product, rounded to bfloat16, is three bits shorter."""
    B = numbers(seed, "bfloat16", 3000)
    exact = B.astype(np.float64) * scale
    off = {
        order: np.abs(prescale(B, scale, "float16", order).astype(np.float64) / exact - 1).max()
        for order in ("convert", "manager")
    }
    one = (1 + UNIT["float32"]) ** 2 * (1 + UNIT["float16"]) - 1
    assert off["manager"] <= one < off["convert"] <= (1 + one) * (1 + UNIT["bfloat16"]) - 1


def test_what_is_too_large_for_the_type_is_lost_by_whoever_casts_first() -> None:
    B = np.array([100000.0], np.float32)
    assert prescale(B, 0.1, "float16", "convert") == 10000
    assert np.isinf(prescale(B, 0.1, "float16", "manager"))


@pytest.mark.parametrize("preset", ["tensorrt_llm", "tensorrt_llm_convert"])
def test_the_presets_of_earlier_versions_name_the_backend(preset: str) -> None:
    order = {"tensorrt_llm": "manager", "tensorrt_llm_convert": "convert"}[preset]
    with pytest.raises(LoracleError, match=rf'backend\("float16", "{order}"\) with Precision\("model", "float16"\)'):
        Precision(preset, "float16")


def test_a_prescaled_adapter_shares_no_blocks_with_one_that_is_not() -> None:
    """Nor one order with the other: the prefix key has the digest of what was bound."""
    model = random_model(ModelConfig(11, 10, 7, 1, 4, 2, 4), 0, "float32")
    adapter = as_dtype(random_adapter(model.config, 1, alpha=0.7), "bfloat16")
    caches = [
        AdapterCache(model, Precision("model", "float16"), ops)
        for ops in (NUMPY, backend("float16", "manager"), backend("float16", "convert"))
    ]
    assert len({cache.digest(cache.acquire(adapter)) for cache in caches}) == 3


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(LoracleError, match="scale order 'last' is not known; choose one of convert, manager"):
        prescale(np.ones(1, np.float32), 2.0, "float16", "last")


@pytest.mark.parametrize("order", ["convert", "manager"])
def test_what_is_too_large_is_inf_without_a_warning(order: str) -> None:
    found = prescale(np.ones(2, np.float32), 1e300, "float16", order)
    assert np.isinf(found.astype(np.float32)).all()
