"""Which token asks for which adapter: the five mixes that multi-LoRA papers measure, and the points of the grid.

identical   one adapter for all tokens                                          1 adapter
uniform     ceil(sqrt(n)) adapters, equally popular                             sqrt n
distinct    every token its own adapter                                         n
zipf        the i-th adapter is asked for in proportion to i^-1.5               what is drawn
skewed      each adapter is 1.5 times as popular as the next                    what is drawn
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from ..arrays import Int

MIXES = ("identical", "uniform", "distinct", "zipf", "skewed")
TOKENS = (1, 8, 64, 256, 1024, 4096)
RANKS = (8, 16, 64)
SHAPES = ((4096, 4096), (4096, 14336), (14336, 4096))  # d_in, d_out: Llama-8B's q and o; gate and up; down
DTYPES = ("float16", "bfloat16")
PREFILL = 1024  # from so many tokens on, those of one adapter lie together, as the tokens of a prompt do


@dataclass(frozen=True)
class Point:
    """One thing to measure: y += scale * B (A x) for these tokens, this mix of adapters, this layer."""

    tokens: int
    mix: str
    rank: int
    d_in: int
    d_out: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.tokens} tokens, {self.mix}, rank {self.rank}, {self.d_in} -> {self.d_out}, {self.dtype}"


def adapter_ids(mix: str, tokens: int, seed: int = 0) -> Int[np.ndarray, " tokens"]:
    """One adapter for each token, numbered from 0 without gaps; the same for the same seed."""
    rng = np.random.default_rng([seed, tokens, MIXES.index(mix)])
    if mix == "identical":
        ids = np.zeros(tokens, int)
    elif mix == "uniform":
        ids = rng.permutation(tokens) % math.ceil(math.sqrt(tokens))
    elif mix == "distinct":
        ids = rng.permutation(tokens)
    else:
        rank = np.arange(1, tokens + 1, dtype=float)
        shares = rank**-1.5 if mix == "zipf" else 1.5 ** (1 - np.minimum(rank, 500))
        choices = rng.choice(tokens, tokens, p=shares / shares.sum())
        ids = np.unique(choices, return_inverse=True)[1]
    return (np.sort(ids) if tokens >= PREFILL else ids).astype(np.int32)


def grid(full: bool = False) -> list[Point]:
    """All points, or about sixty: every (tokens, mix, rank) once, shapes and types taking turns; the two drawn mixes
    at rank 16."""
    cells = [
        (n, mix, rank)
        for n, mix, rank in itertools.product(TOKENS, MIXES, RANKS)
        if not (n == 1 and mix != "identical") and (full or mix in MIXES[:3] or rank == 16)
    ]
    if full:
        return [Point(*cell, *shape, dtype) for cell in cells for shape in SHAPES for dtype in DTYPES]
    return [
        Point(n, mix, rank, *SHAPES[turn % 3], DTYPES[turn % 2])
        for n, mix, rank in cells
        for turn in [TOKENS.index(n) + MIXES.index(mix) + RANKS.index(rank)]
    ]


def small_grid(quick: bool = False) -> list[Point]:
    """The same in a size for kernels that run on a CPU, one fiber per thread."""
    tokens, shapes = ((1, 8), ((128, 192),)) if quick else ((1, 8, 32), ((256, 256), (256, 896), (896, 256)))
    cells = [
        (n, mix, rank)
        for n, mix, rank in itertools.product(tokens, MIXES, (8, 16))
        if not (n == 1 and mix != "identical") and (not quick or rank == 8 or mix == "uniform")
    ]
    return [
        Point(n, mix, rank, *shapes[turn % len(shapes)], DTYPES[turn % 2]) for turn, (n, mix, rank) in enumerate(cells)
    ]
