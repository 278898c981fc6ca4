"""The size of an error: its root mean square."""

from collections.abc import Sequence

import numpy as np

from ...arrays import Array


def rms(x: Array | Sequence[float], axis: int | tuple[int, ...] | None = None) -> Array:
    """Return sqrt(mean(x^2)) of all numbers [], or along axes; 0 of no numbers at all."""
    squares = np.square(x)
    return np.sqrt(np.mean(squares, axis=axis)) if squares.size else np.zeros(())


def rms_shown(x: Array, shown: Array) -> Array:
    """Return the rms [...] of rows [..., vocab], over what an engine shows of each; 0 where that is nothing."""
    return np.sqrt(np.sum(np.where(shown, x, 0.0) ** 2, axis=-1) / np.maximum(shown.sum(axis=-1), 1))
