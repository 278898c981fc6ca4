"""The comparison that all properties rest on fails on everything that it should fail on."""

import numpy as np
import pytest
from support.compare import assert_differ, assert_equal_to_rounding, assert_same_bits

GOOD = np.random.default_rng(0).standard_normal((5, 7))


def one_wrong_row() -> np.ndarray:
    x = GOOD.copy()
    x[3] *= 1 + 1e-9
    return x


def with_value(value: float) -> np.ndarray:
    x = GOOD.copy()
    x[2, 4] = value
    return x


BAD = {
    "nan": with_value(np.nan),
    "all nan": np.full_like(GOOD, np.nan),
    "inf": with_value(np.inf),
    "minus inf": with_value(-np.inf),
    "one element off": with_value(GOOD[2, 4] + 1e-9),
    "one wrong row": one_wrong_row(),
    "another dtype": GOOD.astype(np.float32),
    "a row missing": GOOD[:4],
    "a shape that would broadcast": GOOD[:, None, :],
    "rows in another order": GOOD[::-1],
    "all zeros": np.zeros_like(GOOD),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_it_fails_on(bad: np.ndarray) -> None:
    for compare in (assert_equal_to_rounding, assert_same_bits):
        with pytest.raises(AssertionError):
            compare(bad, GOOD)
        with pytest.raises(AssertionError):
            compare(GOOD, bad)


def test_nan_is_not_even_equal_to_nan() -> None:
    for compare in (assert_equal_to_rounding, assert_same_bits):
        with pytest.raises(AssertionError):
            compare(with_value(np.nan), with_value(np.nan))


def test_it_passes_what_rounding_does() -> None:
    assert_equal_to_rounding(GOOD * (1 + 1e-15), GOOD)
    assert_equal_to_rounding(with_value(-np.inf), with_value(-np.inf))
    assert_same_bits(GOOD.copy(), GOOD)


def test_a_small_row_is_measured_by_its_own_size() -> None:
    expected = np.vstack([np.full(4, 1e6), np.full(4, 1e-6)])
    actual = expected.copy()
    actual[1] += 1e-9
    with pytest.raises(AssertionError):
        assert_equal_to_rounding(actual, expected, 1e-4)


def test_a_row_of_zeros_must_be_zeros() -> None:
    with pytest.raises(AssertionError):
        assert_equal_to_rounding(np.full((1, 3), 1e-300), np.zeros((1, 3)))


def test_the_sign_of_a_zero_is_a_bit() -> None:
    with pytest.raises(AssertionError):
        assert_same_bits(np.array([-0.0]), np.array([0.0]))


def test_what_can_hardly_be_told_apart_does_not_differ() -> None:
    assert_differ(GOOD, GOOD * 1.001)
    for same in (GOOD, one_wrong_row(), with_value(np.nan)):
        with pytest.raises(AssertionError):
            assert_differ(same, GOOD)
