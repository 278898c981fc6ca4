"""Numbers for a structure that was drawn: distinct, not zero, and told apart in every product.

They depend on the structure alone, so Hypothesis shrinks the structure and nothing else. Primes, because a sum of
products of distinct primes says which factors went into it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.exceptions import ComplexWarning
from numpy.typing import NDArray

from .exercise import ReturnsNothing


class Primes:
    """Hands out the primes in order, from 2: `Primes()((2, 3))` is [[2, 3, 5], [7, 11, 13]]."""

    def __init__(self) -> None:
        self.last = 1

    def __call__(self, shape: int | tuple[int, ...] = ()) -> NDArray[np.float64]:
        """Return an array of that shape of the next primes, as float64: whole numbers, so that sums are exact."""
        size = int(np.prod(shape))
        return np.array([self._next() for _ in range(size)], np.float64).reshape(shape)

    def _next(self) -> int:
        self.last += 1
        while any(self.last % n == 0 for n in range(2, int(self.last**0.5) + 1)):
            self.last += 1
        return self.last


def plain(array: Any) -> str:
    """Return an array, a list or a number as one line, whole numbers without a point: [[2, 3.5], [7, 11]]."""
    if isinstance(array, np.ndarray):
        array = array.tolist()
    if isinstance(array, list | tuple):
        return "[" + ", ".join(plain(value) for value in array) + "]"
    return f"{array:.6g}" if isinstance(array, float) else str(array)


def listed(value: Any) -> Any:
    """Return what is yielded, or comes out of map() and zip(), as a list; everything else as it is."""
    return list(value) if isinstance(value, Iterator) else value


def is_whole(value: Any) -> bool:
    """Return whether it can be an index: NumPy takes 2, and not 2.0."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def shown(compute: Callable[[], Any]) -> str:
    """Return what an attempt makes, as one line; "(raises)" where it raises: `describe` shows the case all the same."""
    try:
        return plain(compute())
    except ReturnsNothing:
        return "None"
    except ComplexWarning:
        return "(complex)"
    except Exception:
        return "(raises)"


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines with aligned columns; a cell that is missing stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    widths = {name: max(len(str(row.get(name, ""))) for row in rows) for name in names}
    return ["  ".join(str(row.get(name, "")).ljust(widths[name]) for name in names).rstrip() for row in rows]
