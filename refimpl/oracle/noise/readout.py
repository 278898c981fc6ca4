"""The comparison space: truth, honest runs and mutants are all mapped to what the engine shows.

Every row is compared less its mean: what is added to all logits alike, softmax takes away again. (Of a trained model's
rounding a third can lie along that one direction, which makes its rows three times as unsteady as a random model's.)
Log-probabilities are compared with log_softmax of the truth. Of the top k only the tokens count that are in the
reference's top k as well: the engine chose its set with its own error.
"""

from dataclasses import dataclass, field

import numpy as np

from ...arrays import Array
from ...engines.interface import EngineResponse


class Unreadable(Exception):
    """The response cannot be read: what is wrong with it, in one line. A failed case."""


@dataclass(frozen=True, eq=False)
class View:
    """The numbers of one response; `of` gives the same of any logits of the same rows."""

    values: Array  # [rows, shown numbers], 0 where the engine shows nothing
    shown: Array  # the same shape, of bool
    logprobs: bool = True  # log-probabilities, or logits

    def of(self, logits: Array) -> Array:
        """logits [rows, vocab] -> what an engine with these logits would show."""
        return centred(log_softmax(logits) if self.logprobs else logits, self.shown)

    def error(self, logits: Array, exact: Array) -> Array:
        """What an engine with these logits would be off by. exact: the true logits of the same rows."""
        return self.of(logits) - self.of(exact)


@dataclass(frozen=True, eq=False)
class Gap(View):
    """Of text alone: by how much each produced token is below the best one, [rows, 1]."""

    best: Array = field(default_factory=lambda: np.zeros(0, int))
    tokens: Array = field(default_factory=lambda: np.zeros(0, int))

    def of(self, logits: Array) -> Array:
        """The logit of the best token less that of the produced one."""
        at = np.arange(len(self.best))
        return (logits[at, self.best] - logits[at, self.tokens])[:, None]

    def error(self, logits: Array, exact: Array) -> Array:
        """The engine would have produced its own best token: by so much is that one below the truly best."""
        at = np.arange(len(self.best))
        return (exact[at, logits.argmax(axis=1)] - exact[at, self.best])[:, None]


def centred(scores: Array, shown: Array) -> Array:
    """Logits or log-probabilities less the mean of those that are shown. One number of a row, which is the same for all
    tokens, can be as much as all others together of what an engine rounds: the logarithm of the sum of probabilities,
    or how far all logits moved along the mean row of the head. It says nothing of the model. A single token is left as
    it is."""
    count = shown.sum(axis=-1, keepdims=True)
    mean = np.sum(np.where(shown, scores, 0.0), axis=-1, keepdims=True) / np.maximum(count, 1)
    return np.where(shown, scores - np.where(count > 1, mean, 0.0), 0.0)


def log_softmax(x: Array) -> Array:
    """Over the vocabulary."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def rows_of(response: EngineResponse) -> int:
    """How many rows the engine showed; 0 where it shows text alone."""
    for x in (response.logits, response.logprobs, response.top):
        if x is not None:
            return len(x)
    return 0


def view(response: EngineResponse, exact: Array) -> View:
    """exact: the true logits of the same rows. Unreadable where the response cannot be what was asked for."""
    if response.error:
        raise Unreadable(response.error)
    if response.top is not None:
        return _top(response, exact)
    values = response.logits if response.logits is not None else response.logprobs
    assert values is not None
    if values.ndim != 2 or values.shape[1] != exact.shape[1]:
        raise Unreadable(f"rows of {values.shape[-1]} numbers where the vocabulary has {exact.shape[1]}")
    if len(values) != len(exact):
        raise Unreadable(f"{len(values)} rows where {len(exact)} were expected")
    values = np.asarray(values, np.float64)
    _check_finite(values, exact)
    if response.logits is None:
        _check_probabilities(np.exp(values).sum(axis=1))
    shown = np.isfinite(exact)
    return View(centred(values, shown), shown, logprobs=response.logits is None)


def _check_finite(values: Array, exact: Array) -> None:
    wrong = np.isnan(values) | (np.isinf(values) & np.isfinite(exact))
    if wrong.all():
        raise Unreadable(f"every number is {values[0, 0]}")
    if wrong[-1].all() and not wrong[:-1].any():
        raise Unreadable(f"every number of the last row is {values[-1, 0]}")
    if wrong.any():
        row, token = (int(i) for i in np.argwhere(wrong)[0])
        raise Unreadable(f"{values[row, token]} for token {token} in row {row} ({int(wrong.sum())} such numbers)")


def _check_probabilities(sums: Array) -> None:
    """What a type of few bits rounds does not make twice as many of them."""
    wrong = np.flatnonzero(~((sums > 0.5) & (sums < 2)))
    if len(wrong):
        raise Unreadable(f"the probabilities of row {wrong[0]} sum to {sums[wrong[0]]:.3g}: are the logprobs logits?")


def _top(response: EngineResponse, exact: Array) -> View:
    assert response.top is not None
    if len(response.top) != len(exact):
        raise Unreadable(f"{len(response.top)} rows where {len(exact)} were expected")
    values, shown, true = np.zeros(exact.shape), np.zeros(exact.shape, bool), log_softmax(exact)
    for i, row in enumerate(response.top):
        k = len(row)
        if k == 0:
            raise Unreadable(f"row {i} names no token")
        unknown = [t for t in row if not 0 <= t < exact.shape[1]]
        if unknown:
            raise Unreadable(f"row {i} names token {unknown[0]}, the vocabulary has {exact.shape[1]}")
        if not all(np.isfinite(list(row.values()))):
            raise Unreadable(f"row {i} holds a log-probability that is no number")
        best = set(np.argpartition(-true[i], min(k, exact.shape[1] - 1))[:k].tolist())
        both = [t for t in row if t in best] or [max(row, key=row.__getitem__)]  # all strangers: its own favourite
        values[i, both], shown[i, both] = [row[t] for t in both], True
    return View(centred(values, shown), shown)
