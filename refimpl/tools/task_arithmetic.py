"""What is done with several tensors of one shape to make one of them: sums, pruning, and a vote on signs.

    linear           sum_i w_i X_i                                                  (Ilharco et al. 2023)
    magnitude_prune  the same of the largest numbers of each X_i, the others 0
    dare_linear      the same of X_i * M_i / density, M_i random zeros and ones       (Yu et al. 2024)
    ties             magnitude_prune, and of what is left only where the sign is that of most; their mean over
                     those that are left, not their sum                              (Yadav et al. 2023)
    dare_ties        dare_linear, then the vote

as peft/utils/merge_utils.py of PEFT 0.21 has them. `density` is the share of numbers that stays.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ..arrays import Array

SIGNS = ("total", "frequency")  # what elects a sign: the sum of the numbers, or how many have it

Prune = Callable[[int, Array], Array]  # number of the tensor in the sum and the tensor -> what is left of it


def largest(x: Array, density: float) -> Array:
    """x with all but its int(density * size) largest magnitudes as 0; of equal ones the first stay."""
    count, sizes = int(density * x.size), np.abs(x).reshape(-1)
    if count >= x.size:
        return x
    if count == 0:
        return np.zeros_like(x)
    least = np.partition(sizes, x.size - count)[x.size - count]
    kept = sizes > least
    kept[np.flatnonzero(sizes == least)[: count - np.count_nonzero(kept)]] = True
    return x * kept.reshape(x.shape)


def dropped(x: Array, density: float, kept: Array) -> Array:
    """x where `kept` is true, divided by the density, so that the expected value stays what it is."""
    return x * kept / density


def weighted_sum(tensors: Sequence[Array], weights: Sequence[float]) -> Array:
    """sum_i w_i X_i"""
    return np.sum([weight * x for x, weight in zip(tensors, weights, strict=True)], axis=0)


def elected_mean(tensors: Sequence[Array], weights: Sequence[float], method: str) -> Array:
    """The mean of w_i X_i over those whose sign is the elected one; 0 where there is none.

    The vote is on X_i without their weights, as in PEFT; a sum of 0 elects +."""
    stack = np.stack(tensors)
    votes = stack.sum(axis=0) if method == "total" else np.sign(stack).sum(axis=0)
    agrees = np.sign(stack) == np.where(votes >= 0, 1, -1)
    total = np.sum([weight * x * mask for x, weight, mask in zip(tensors, weights, agrees, strict=True)], axis=0)
    return total / np.maximum(agrees.sum(axis=0), 1)
