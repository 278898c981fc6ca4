"""Logits -> one token: greedy, temperature, top-k, top-p; one seed per request.

A request's random numbers depend on its seed and on how many tokens it has produced, on nothing else: not on its
neighbours in the batch, and not on whether it was preempted and computed again.
"""

import numpy as np

from .arrays import Array, Float
from .request import Request


def sample(logits: Float[Array, " vocab"], request: Request, produced: int) -> int:
    """Return the next token id. `produced`: how many tokens the request has produced so far.

    The logits hold no NaN, and something above -inf: Engine.step refuses others, by the request's id."""
    if request.temperature == 0:
        return int(logits.argmax())
    p = probabilities(logits, request.temperature, request.top_k, request.top_p)
    quantile = uniform(request.seed, produced)
    return int(min(np.searchsorted(np.cumsum(p), quantile, side="right"), np.flatnonzero(p)[-1]))


def uniform(seed: int, step: int) -> float:
    """One number in [0, 1): a function of the two, drawn from the counter-based generator Philox."""
    return float(np.random.Generator(np.random.Philox(key=seed % 2**64, counter=step)).random())


def probabilities(
    logits: Float[Array, " vocab"], temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Float[Array, " vocab"]:
    """What the sampler draws from, in the order of Hugging Face's warpers: temperature, then top-k, then top-p.

    top-k keeps the k largest logits (and all that tie with the k-th); top-p keeps the smallest set of the largest
    probabilities whose sum reaches top_p, at least one."""
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a tiny temperature sends all but the largest to -inf: that is its limit
        scores = np.where(logits == logits.max(), 0.0, (logits.astype(np.float64) - logits.max()) / temperature)
    if 0 < top_k < scores.size:
        scores[scores < np.partition(scores, -top_k)[-top_k]] = -np.inf
    p = np.exp(scores)
    p /= p.sum()
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]  # what the more probable ones add up to
        p[order[before >= top_p]] = 0
        p /= p.sum()
    return p
