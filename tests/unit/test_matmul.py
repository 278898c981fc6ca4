"""x W^T in each of its forms is x W^T: tokens on both sides of every limit, pieces allowed and not."""

import numpy as np
import pytest

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
