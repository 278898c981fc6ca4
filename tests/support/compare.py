"""How two arrays are compared in these tests. A NaN never passes: always `not (diff <= tol)`, never `diff > tol`."""

import numpy as np


def assert_equal_to_rounding(actual: np.ndarray, expected: np.ndarray, rtol: float = 1e-12) -> None:
    """Equal shapes, equal dtypes, infinities in the same places, and no element of any row (last axis) further off
    than rtol times the largest of that row. A row of zeros must be zeros."""
    assert_same_kind(actual, expected)
    assert not np.isnan(expected).any(), "the expected array holds NaN: nothing can equal it"
    finite = np.isfinite(expected)
    assert (actual[~finite] == expected[~finite]).all(), "infinities stand in different places"
    if expected.size == 0:
        return
    largest = np.abs(np.where(finite, expected, 0)).max(axis=-1, keepdims=True)
    off = np.abs(np.where(finite, actual, 0) - np.where(finite, expected, 0))
    wrong = ~(off <= rtol * largest)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} elements differ, first {where}: {actual[where]!r}, not {expected[where]!r}"
        )


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Not one bit differs, the sign of a zero included."""
    assert_same_kind(actual, expected)
    assert not np.isnan(expected).any(), "the expected array holds NaN: nothing can equal it"
    assert actual.tobytes() == expected.tobytes(), f"{(actual != expected).sum()} of {actual.size} elements differ"


def assert_differ(a: np.ndarray, b: np.ndarray, rtol: float = 1e-6) -> None:
    """Clearly not the same numbers: asked before two things that must not be mixed up are compared to a third."""
    assert not np.isnan(a).any() and not np.isnan(b).any()
    assert a.shape != b.shape or bool(np.abs(a - b).max() >= rtol * np.abs(b).max()), "the two cannot be told apart"


def assert_same_kind(actual: np.ndarray, expected: np.ndarray) -> None:
    """One shape, one dtype."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, not {expected.shape}"
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, not {expected.dtype}"
