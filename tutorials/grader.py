"""Marks an exercise: random batches against the definition, and a small one on which they differ. Needs NumPy alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Case:
    """One batch: what the function is called with, in this order."""

    y: np.ndarray
    x: np.ndarray
    A: list[np.ndarray]
    B: list[np.ndarray]
    scale: list[float]
    adapter_ids: np.ndarray


def definition(
    y: np.ndarray,
    x: np.ndarray,
    A: list[np.ndarray],
    B: list[np.ndarray],
    scale: list[float],
    adapter_ids: np.ndarray,
) -> None:
    """Add scale[i] * B[i] @ (A[i] @ x[t]) to y[t] for i = adapter_ids[t], and nothing where that is -1. In place."""
    for t, i in enumerate(adapter_ids):
        if i != -1:
            y[t] += scale[i] * (B[i] @ (A[i] @ x[t]))


def random_case(rng: np.random.Generator) -> Case:
    """Draw small whole numbers, so that a case can be checked by hand; ranks are mixed and scales are not 1."""
    tokens, adapters = rng.integers(1, 6), rng.integers(1, 4)
    d_in, d_out = rng.integers(1, 4), rng.integers(1, 4)
    ranks = rng.integers(1, 4, adapters)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.integers(-3, 4, (rows, columns)).astype(float)

    return Case(
        matrix(tokens, d_out),
        matrix(tokens, d_in),
        [matrix(r, d_in) for r in ranks],
        [matrix(d_out, r) for r in ranks],
        [float(rng.choice([2.0, 0.5, -1.0])) for _ in ranks],
        rng.integers(-1, adapters, tokens).astype(np.int32),
    )


def result_of(function: Callable[..., None], case: Case) -> np.ndarray | str:
    """Return y after the call, or the exception as text. The function gets copies: it may change them as it likes."""
    y = case.y.copy()
    A, B = [matrix.copy() for matrix in case.A], [matrix.copy() for matrix in case.B]
    try:
        function(y, case.x.copy(), A, B, list(case.scale), case.adapter_ids.copy())
    except NotImplementedError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return y


def differs(attempt: Callable[..., None], case: Case) -> bool:
    """Return whether the attempt is wrong on this batch."""
    result, expected = result_of(attempt, case), result_of(definition, case)
    if isinstance(result, str) or isinstance(expected, str):
        return True
    return result.shape != expected.shape or not np.allclose(result, expected, rtol=1e-9, atol=1e-9)


def smaller_cases(case: Case) -> Iterator[Case]:
    """Yield the batch with a token, an adapter, a rank, an input or an output less, then with simpler numbers."""
    if len(case.x) > 1:
        for t in range(len(case.x)):
            y, x, ids = (np.delete(array, t, axis=0) for array in (case.y, case.x, case.adapter_ids))
            yield replace(case, y=y, x=x, adapter_ids=ids)
    for i in range(len(case.A)):
        if len(case.A) > 1 and i not in case.adapter_ids:
            A, B, scale = (values[:i] + values[i + 1 :] for values in (case.A, case.B, case.scale))
            yield replace(case, A=A, B=B, scale=scale, adapter_ids=case.adapter_ids - (case.adapter_ids > i))
        for r in range(len(case.A[i])):
            if len(case.A[i]) > 1:
                A, B = np.delete(case.A[i], r, axis=0), np.delete(case.B[i], r, axis=1)
                yield replace(case, A=exchanged(case.A, i, A), B=exchanged(case.B, i, B))
    for j in range(case.x.shape[1]):
        if case.x.shape[1] > 1:
            yield replace(case, x=np.delete(case.x, j, axis=1), A=[np.delete(A, j, axis=1) for A in case.A])
    for j in range(case.y.shape[1]):
        if case.y.shape[1] > 1:
            yield replace(case, y=np.delete(case.y, j, axis=1), B=[np.delete(B, j, axis=0) for B in case.B])
    yield from simpler_numbers(case)


def simpler_numbers(case: Case) -> Iterator[Case]:
    """Yield the batch with all numbers of one array 0, then 1: 1 stays where 0 would hide the difference."""
    for value in (0.0, 1.0):
        for name in ("y", "x"):
            array = getattr(case, name)
            if simplicity(array) > value:
                yield replace(case, **{name: np.full_like(array, value)})
        for name in ("A", "B"):
            for i, matrix in enumerate(getattr(case, name)):
                if simplicity(matrix) > value:
                    yield replace(case, **{name: exchanged(getattr(case, name), i, np.full_like(matrix, value))})


def simplicity(array: np.ndarray) -> float:
    """Return 0 if all numbers are 0, 1 if all are 1, else 2: what is tried has to be lower, so that it ends."""
    return 0.0 if (array == 0).all() else 1.0 if (array == 1).all() else 2.0


def exchanged(values: list[np.ndarray], i: int, value: np.ndarray) -> list[np.ndarray]:
    """Return the list with another value at i."""
    return [*values[:i], value, *values[i + 1 :]]


def smallest(attempt: Callable[..., None], case: Case) -> Case:
    """Return a batch that cannot be made smaller in one step without the difference going away."""
    while True:
        smaller = next((smaller for smaller in smaller_cases(case) if differs(attempt, smaller)), None)
        if smaller is None:
            return case
        case = smaller


def grade(attempt: Callable[..., None], examples: int = 300) -> bool:
    """Print "not attempted", "passed", or a small batch on which it differs; return whether it passed."""
    rng = np.random.default_rng(0)
    try:
        wrong = next((case for case in (random_case(rng) for _ in range(examples)) if differs(attempt, case)), None)
        if wrong is None:
            print(f"passed: {examples} random batches, each equal to the definition")
            return True
        wrong = smallest(attempt, wrong)
    except NotImplementedError:
        print("not attempted")
        return False
    print("not yet: here is a small batch on which it differs")
    for name, value in vars(wrong).items():
        print(f"  {name} = {[each.tolist() for each in value] if name in 'AB' else np.asarray(value).tolist()}")
    for name, result in (("yours", result_of(attempt, wrong)), ("expected", result_of(definition, wrong))):
        print(f"  {name}: {result if isinstance(result, str) else 'y = ' + str(result.tolist())}")
    return False
