"""What a script says that shows a defect: how far an engine is from the right answer, and from what the cause predicts.

The right answer and the predicted one are Loracle's, in float64, on the very folders that the engine reads; both are
compared as log-probabilities. `python tests/defects/show.py NAME` runs one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refimpl.oracle.noise.readout import log_softmax

WRONG, SAME = 1e-2, 1e-4  # in log-probabilities; float32 itself is 1e-5 off on these models


@dataclass(frozen=True)
class Shown:
    """What was seen: two distances in log-probabilities, or the error that ended it."""

    what: str  # the request that is compared
    wrong: float = float("nan")  # from the right answer
    cause: float | None = None  # from what the cause predicts, where that can be computed
    error: str = ""  # what the engine said instead of an answer

    @property
    def there(self) -> bool:
        """Is the defect there, and is it this one?"""
        return bool(self.error) or (self.wrong > WRONG and (self.cause is None or self.cause < SAME))

    def __str__(self) -> str:
        if self.error:
            return f"{self.what}: {self.error}"
        predicted = "" if self.cause is None else f", {self.cause:.1g} from what the cause predicts"
        return f"{self.what}: {self.wrong:.2g} from the right answer{predicted}"


SHOWN: dict[str, Callable[[Path], Shown]] = {}  # by the name of the entry, each given an empty folder


def shows(function: Callable[[Path], Shown]) -> Callable[[Path], Shown]:
    """List the function under its name, which is that of its entry."""
    SHOWN[function.__name__] = function
    return function


def compared(
    what: str, got: Sequence[np.ndarray], right: Sequence[np.ndarray], predicted: Sequence[np.ndarray] | None = None
) -> Shown:
    """Compare rows of logits, or of log-probabilities, with both."""
    return Shown(what, distance(got, right), None if predicted is None else distance(got, predicted))


def distance(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the largest difference of a log-probability. ValueError where the shapes differ."""
    return max(
        float(np.abs(log_softmax(x.astype(float)) - log_softmax(y.astype(float))).max())
        for x, y in zip(got, expected, strict=True)
    )
