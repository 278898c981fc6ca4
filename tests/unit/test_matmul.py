"""x W^T in each of its forms is x W^T: tokens on both sides of every limit, pieces and panels allowed and not."""

import gc
import pickle

import numpy as np
import pytest
from support.testbed import small_testbed

from refimpl import matmul


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, matmul.FEW_TOKENS + 1, matmul.SOME_TOKENS, matmul.SOME_TOKENS + 1])
@pytest.mark.parametrize("d_out, d_in", [(96, 40), (97, 40), (24, 1300), (0, 40), (24, 0)])
def test_each_form_is_the_product(
    packs: bool, tokens: int, d_out: int, d_in: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "WITHOUT_PACKING", not packs)
    matmul.piece.cache_clear()
    rng = np.random.default_rng(tokens)
    x, W = rng.integers(-9, 9, (tokens, d_in)) * 1.0, rng.integers(-9, 9, (d_out, d_in)) * 1.0
    for weight in (W, np.asfortranarray(W), np.ascontiguousarray(W[::-1])[::-1]):  # integers: every order is exact
        np.testing.assert_array_equal(matmul.product(x, weight), np.einsum("ti,oi->to", x, weight))
    matmul.piece.cache_clear()


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, 16, 31, 32, 33, 79])
@pytest.mark.parametrize("n, m", [(40, 8), (8, 40), (300, 209), (300, 208), (1, 1), (0, 8)])
def test_a_thin_product_is_the_product(
    packs: bool, tokens: int, n: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "WITHOUT_PACKING", not packs)
    rng = np.random.default_rng(tokens)
    x, M = rng.integers(-9, 9, (tokens, n)) * 1.0, rng.integers(-9, 9, (m, n)).T * 1.0
    for rows in (x, np.asfortranarray(x)):
        np.testing.assert_array_equal(matmul.thin(rows, M), np.einsum("tn,nm->tm", x, M))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tokens", [1, 2, matmul.SOME_TOKENS, matmul.SOME_TOKENS + 1])
@pytest.mark.parametrize("d_out", [matmul.PANEL, matmul.PANEL + 1, 3 * matmul.PANEL])
def test_panels_of_a_small_weight_are_kept_as_long_as_it_is(d_out: int, tokens: int, dtype: str) -> None:
    gc.collect()  # weights of other tests that nobody has any more
    rng, before = np.random.default_rng(d_out), len(matmul._kept)
    x, W = (rng.integers(-9, 9, (rows, 80)).astype(dtype) for rows in (tokens, d_out))
    W.flags.writeable = False
    for _ in range(2):
        y = matmul.product(x, W)
        assert y.dtype == W.dtype
        np.testing.assert_array_equal(y, np.einsum("ti,oi->to", x, W))
    assert len(matmul._kept) == before + (1 < tokens <= matmul.SOME_TOKENS), "packed once"
    del W
    gc.collect()
    assert len(matmul._kept) == before


def test_what_could_still_be_written_to_or_is_large_is_not_held_twice() -> None:
    written, large, short = np.zeros((64, 64), np.float32), np.zeros((512, 513), np.float32), np.zeros((8, 512))
    large.flags.writeable = short.flags.writeable = False
    assert [matmul.panels(W) for W in (written, large, short)] == [None] * 3
    x = np.ones((2, 64), np.float32)
    assert not matmul.product(x, written).any()
    written[:] = 1
    assert (matmul.product(x, written) == 64).all()


def test_pieces_divide_the_weight_and_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "WITHOUT_PACKING", True)
    monkeypatch.setattr(matmul, "SMALL_WEIGHT", 1 << 18)
    matmul.piece.cache_clear()
    assert matmul.piece(8, 256, 256) == 128
    assert matmul.piece(64, 64, 2048) == 0, "7 rows at a time are too few"
    assert matmul.piece(8, 97, 256) == 97 and matmul.piece(8, 1009, 16) == 0, (
        "a prime number of rows is one piece or none"
    )
    assert matmul.piece(8, 32000, 768) == 0, "several threads share a large weight"
    matmul.piece.cache_clear()


def test_a_model_is_read_only_in_another_process_too_and_has_the_same_forms() -> None:
    model = pickle.loads(pickle.dumps(small_testbed().model))
    assert not any(array.flags.writeable for array in model.arrays())
