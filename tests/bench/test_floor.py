"""The byte floor against numbers that were worked out by hand, and the mixes against what they say of themselves."""

import numpy as np
import pytest

from refimpl.bench.floor import work
from refimpl.bench.workloads import MIXES, RANKS, SHAPES, TOKENS, Point, adapter_ids, grid, small_grid

# BGMV, 4096 -> 4096, rank 16, 2-byte numbers: 256 KiB for each adapter that occurs, 24 KiB + 4 B for each token.
BY_HAND = [
    (1, "identical", 286_724),
    (8, "identical", 458_784),
    (8, "uniform", 983_072),
    (8, "distinct", 2_293_792),
    (64, "identical", 1_835_264),
    (64, "uniform", 3_670_272),
    (64, "distinct", 18_350_336),
    (256, "identical", 6_554_624),
    (256, "uniform", 10_486_784),
    (256, "distinct", 73_401_344),
]


@pytest.mark.parametrize(("tokens", "mix", "wanted"), BY_HAND)
def test_the_floor_is_what_a_pencil_says(tokens: int, mix: str, wanted: int) -> None:
    todo = work(adapter_ids(mix, tokens), rank=16, d_in=4096, d_out=4096)
    assert todo.bytes == wanted
    assert todo.flops == 2 * tokens * 16 * 8192


def test_other_widths_and_types() -> None:
    """3 tokens of 2 adapters, one token of none: A 2 x (8 x 100), B 2 x (50 x 8), x 3 x 100, y 3 x 50 twice, 4 ids."""
    todo = work(np.array([0, 5, 0, -1], np.int32), rank=8, d_in=100, d_out=50, size=4)
    assert todo.distinct == 2
    assert todo.bytes == 4 * (2 * 800 + 2 * 400 + 300 + 150 + 150) + 16
    assert todo.intensity == 2 * 3 * 8 * 150 / todo.bytes


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("mix", MIXES)
def test_a_mix_gives_each_token_an_adapter_without_gaps(mix: str, tokens: int) -> None:
    ids = adapter_ids(mix, tokens)
    assert ids.dtype == np.int32 and ids.shape == (tokens,)
    counts = np.bincount(ids)
    assert (counts > 0).all()
    assert np.array_equal(ids, adapter_ids(mix, tokens)), "the same mix twice"
    if tokens >= 1024:
        assert (np.diff(ids) >= 0).all(), "prefill: the tokens of an adapter lie together"
    if mix == "identical":
        assert len(counts) == 1
    if mix == "distinct":
        assert len(counts) == tokens
    if mix == "uniform":
        assert len(counts) == int(np.ceil(np.sqrt(tokens))) and counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("mix", "first"), [("zipf", 0.39), ("skewed", 1 / 3)])
def test_popular_adapters_are_as_popular_as_they_should_be(mix: str, first: float) -> None:
    """sum of i^-1.5 over 4096 adapters is 2.58; a geometric series that falls by 1.5 gives its first a third."""
    counts = np.sort(np.bincount(adapter_ids(mix, 4096)))[::-1]
    assert abs(counts[0] / 4096 - first) < 0.03
    assert abs(counts[0] / counts[1] - (2**1.5 if mix == "zipf" else 1.5)) < 0.3


def test_the_grid_is_about_sixty_points_that_leave_nothing_out() -> None:
    points = grid()
    assert 50 <= len(points) <= 70
    assert len(grid(full=True)) == 468 and set(points) <= set(grid(full=True))
    for mix in MIXES[:3]:
        for tokens in TOKENS[1:]:
            assert {p.rank for p in points if (p.tokens, p.mix) == (tokens, mix)} == set(RANKS)
    for field, values in (("dtype", ("float16", "bfloat16")), ("mix", MIXES), ("tokens", TOKENS)):
        assert {getattr(p, field) for p in points} == set(values)
    assert {(p.d_in, p.d_out, p.dtype) for p in points} == {
        (*shape, dtype) for shape in SHAPES for dtype in ("float16", "bfloat16")
    }
    assert len(small_grid(quick=True)) < len(small_grid()) < 30


def test_a_point_names_itself() -> None:
    assert str(Point(8, "zipf", 16, 32, 64, "float16")) == "8 tokens, zipf, rank 16, 32 -> 64, float16"
