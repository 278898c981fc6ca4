"""Marks an exercise: random inputs against the definition, and the smallest one on which they differ."""

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

Inputs = tuple[np.ndarray, np.ndarray, list[np.ndarray], list[np.ndarray], list[float], np.ndarray]


def definition(
    y: np.ndarray,
    x: np.ndarray,
    A: list[np.ndarray],
    B: list[np.ndarray],
    scale: list[float],
    adapter_ids: np.ndarray,
) -> None:
    """y[t] += scale[a] * B[a] @ (A[a] @ x[t]) for a = adapter_ids[t], and nothing where that is -1. In place."""
    for t, a in enumerate(adapter_ids):
        if a != -1:
            y[t] += scale[a] * (B[a] @ (A[a] @ x[t]))


@st.composite
def inputs(draw: st.DrawFn) -> Inputs:
    """Small whole numbers, so that a counter-example can be checked by hand; ranks are mixed and scales are not 1."""
    tokens, adapters = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    d_in, d_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def matrix(rows: int, columns: int) -> np.ndarray:
        numbers = draw(st.lists(st.integers(-3, 3), min_size=rows * columns, max_size=rows * columns))
        return np.asarray(numbers, float).reshape(rows, columns)

    ranks = [draw(st.integers(1, 3)) for _ in range(adapters)]
    return (
        matrix(tokens, d_out),
        matrix(tokens, d_in),
        [matrix(r, d_in) for r in ranks],
        [matrix(d_out, r) for r in ranks],
        [draw(st.sampled_from([2.0, 0.5, -1.0])) for _ in ranks],
        np.asarray(draw(st.lists(st.integers(-1, adapters - 1), min_size=tokens, max_size=tokens)), np.int32),
    )


def outcome(f: Callable[..., None], case: Inputs) -> np.ndarray | str:
    """y after the call, or the exception as text. The function gets copies: it may do with them what it likes."""
    y, x, A, B, scale, ids = case
    y = y.copy()
    try:
        f(y, x.copy(), [a.copy() for a in A], [b.copy() for b in B], list(scale), ids.copy())
    except NotImplementedError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return y


def grade(attempt: Callable[..., None], examples: int = 300) -> bool:
    """Print "not attempted", "passed", or the smallest counter-example that was found; True if it passed."""

    def wrong(case: Inputs) -> bool:
        got, want = outcome(attempt, case), outcome(definition, case)
        return isinstance(got, str) or got.shape != want.shape or not np.allclose(got, want, rtol=1e-9, atol=1e-9)

    options = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    try:
        case = find(inputs(), wrong, settings=options)
    except NotImplementedError:
        print("not attempted")
        return False
    except NoSuchExample:
        print(f"passed: {examples} random batches, each equal to the definition")
        return True
    y, x, A, B, scale, ids = case
    print("not yet: here is the smallest batch that I found on which it differs")
    for name, value in (("y", y), ("x", x), ("A", A), ("B", B), ("scale", scale), ("adapter_ids", ids)):
        shown = [v.tolist() for v in value] if isinstance(value, list) and isinstance(value[0], np.ndarray) else value
        print(f"  {name} = {shown.tolist() if isinstance(shown, np.ndarray) else shown}")
    for name, result in (("yours", outcome(attempt, case)), ("wanted", outcome(definition, case))):
        print(f"  {name}: {result if isinstance(result, str) else 'y = ' + str(result.tolist())}")
    return False
