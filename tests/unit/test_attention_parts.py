"""The small parts of attention: what a token sees, and how its keys are fetched."""

import numpy as np
import pytest
from support.plans import metadata

from refimpl.attention import gather, mask
from refimpl.tiles import first_visible


def visible(queries: int, keys: int, window: int | None) -> np.ndarray:
    """Where the mask adds 0 and not -inf."""
    found = mask(queries, keys, window)
    assert np.isin(found, [0, -np.inf]).all()
    return found == 0


def test_without_a_window_everything_before_is_visible() -> None:
    assert visible(2, 4, None).tolist() == [[True, True, True, False], [True, True, True, True]]


def test_a_window_holds_the_token_itself_and_those_before_it() -> None:
    assert visible(3, 3, 2).tolist() == [[True, False, False], [True, True, False], [False, True, True]]
    assert visible(2, 4, 1).tolist() == [[False, False, True, False], [False, False, False, True]]


@pytest.mark.parametrize("window", [None, 1, 2, 5])
def test_the_first_visible_position_agrees_with_the_mask(window: int | None) -> None:
    mask = visible(9, 9, window)
    assert [first_visible(i, window) for i in range(9)] == mask.argmax(axis=1).tolist()


@pytest.mark.parametrize("table", [[0, 1, 2, 3], [3, 0, 2, 1], [1, 2, 3, 0], [-1, -1, 3, 2]])
@pytest.mark.parametrize(("lo", "hi"), [(0, 12), (6, 7), (7, 11), (8, 9)])
def test_gather_fetches_positions_in_order(table: list[int], lo: int, hi: int) -> None:
    lo = max(lo, 6) if -1 in table else lo  # a block that has left the window is never asked for
    cache = np.arange(4 * 3 * 2 * 1.0).reshape(4, 3, 2, 1)
    expected = [cache[table[i // 3], i % 3] for i in range(lo, hi)]
    [span] = metadata(np.array([0, 1], np.int32), np.array([12], np.int32), np.array([table], np.int32), cache).spans
    np.testing.assert_array_equal(gather(cache, span, lo, hi), expected)
