"""The plan of a batch of pictures: what its docstring draws, its positions, and an adapter slot that is not filled."""

import numpy as np
import pytest
from support.pictures import random_picture_model

from refimpl import NUMPY, LoracleError, Precision
from refimpl.adapter_slots import AdapterSlots
from refimpl.pictures.batch import filled_up, image_positions, interleaved, make_picture_batch, text_positions

SLOTS = AdapterSlots(random_picture_model(), Precision("model", "float64"))


def test_filling_up_and_putting_together() -> None:
    """Two pictures, of two and one patch, filled up to four."""
    assert filled_up([2, 1], [4, 4]).tolist() == [0, 1, 3, 3, 2, 3, 3, 3]
    assert interleaved([4, 4], [4, 4]).tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]
    assert interleaved([2, 1], [1, 3]).tolist() == [0, 1, 3, 2, 4, 5, 6]


def test_positions() -> None:
    """A caption counts from 1, its fillings too; patches have one position after it, row and column; fillings none."""
    assert text_positions([2, 1]).tolist() == [[1, 0, 0], [2, 0, 0], [1, 0, 0]]
    patches = [[33, 0, 0], [33, 0, 1], [33, 0, 2], [33, 1, 0], [33, 1, 1], [33, 1, 2]]
    assert image_positions([(2, 3), (1, 1)], [8, 2], [32, 64]).tolist() == [
        *patches,
        *[[0] * 3] * 2,
        [65, 0, 0],
        [0] * 3,
    ]


def test_rows_know_their_picture() -> None:
    batch = make_picture_batch([(2, 1), (1, 3)], [40, 1], [[], []], SLOTS, NUMPY)
    for rows, lengths in {
        batch.pictures: [1, 1],
        batch.patches: [2, 3],
        batch.words: [40, 1],
        batch.image: [32, 32],
        batch.text: [64, 32],
        batch.tokens: [96, 64],
    }.items():
        assert np.diff(rows.starts).tolist() == lengths
        assert rows.pictures.tolist() == [0] * lengths[0] + [1] * lengths[1]
        assert (rows.lora.adapter_ids == -1).all() and len(rows.lora.adapter_ids) == sum(lengths)
    assert batch.patch_tokens.tolist() == [0, 1, 96, 97, 98]
    assert batch.tokens.source[batch.patch_tokens].tolist() == [0, 1, 32, 33, 34]
    assert batch.tokens.turns[0].shape == (160, 3)


def test_a_slot_that_is_not_filled_is_refused() -> None:
    with pytest.raises(LoracleError, match=r"adapter id 3 of token 1 is out of range: the slots in use are \[\]"):
        make_picture_batch([(1, 1), (1, 1)], [1, 1], [[], [(3, 1.0)]], SLOTS, NUMPY)
