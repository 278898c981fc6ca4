"""The plans of a batch: positions, rows of logits, and which adapters each token gets."""

import numpy as np
import pytest
from support.build import random_adapter

from refimpl import NUMPY, Request
from refimpl.batch import ScheduledRequest, logits_indices, lora_mapping, make_batch, positions
from refimpl.config import ModelConfig
from refimpl.errors import RequestError
from refimpl.lora import adapter_scale, segments
from refimpl.request import check_request

CONFIG = ModelConfig(11, 10, 7, 1, 4, 2, 4)
ADAPTER = random_adapter(CONFIG, 1)


def test_positions_go_on_from_what_was_computed() -> None:
    assert positions([0, 7, 4], [3, 1, 2]).tolist() == [0, 1, 2, 7, 4, 5]


def test_each_token_gets_the_adapters_of_its_request() -> None:
    ids, weights = lora_mapping([[(2, 1.0)], [], [(0, 0.5), (3, -1.0)]], [2, 1, 2])
    assert ids.tolist() == [[2, -1], [2, -1], [-1, -1], [0, 3], [0, 3]]
    assert weights.tolist() == [[1, 0], [1, 0], [0, 0], [0.5, -1], [0.5, -1]]
    assert ids.dtype == np.int32


def test_the_last_token_of_each_request_gets_logits_or_all_do() -> None:
    starts = np.array([0, 3, 4, 6], np.int32)
    assert logits_indices(starts, False).tolist() == [2, 3, 5]
    assert logits_indices(starts, True).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_batch_is_flat() -> None:
    work = [ScheduledRequest([5, 6, 7], 0, [4, 1], [(1, 1.0)]), ScheduledRequest([9], 4, [0, 3, 2])]
    batch = make_batch(work, 2, NUMPY)
    assert batch.token_ids.tolist() == [5, 6, 7, 9]
    assert batch.positions.tolist() == [0, 1, 2, 4]
    assert batch.slot_mapping.tolist() == [8, 9, 2, 4]
    assert batch.query_start_loc.tolist() == [0, 3, 4]
    assert batch.context_lens.tolist() == [3, 5]
    assert batch.block_tables.tolist() == [[4, 1, -1], [0, 3, 2]]
    assert batch.logits_indices.tolist() == [2, 3]


def test_a_batch_without_tokens_is_refused() -> None:
    for work in ([], [ScheduledRequest([], 0, [0])]):
        with pytest.raises(RequestError):
            make_batch(work, 2, NUMPY)


def test_segments_name_each_adapter_and_weight_once_with_all_their_rows() -> None:
    ids = np.array([2, 2, -1, 0, 2, 0, -1], np.int32)
    weights = np.array([1, 1, 0, 0.5, 1, -2, 0])
    found = [(a, w, np.arange(7)[rows].tolist()) for a, w, rows in segments(ids.tobytes(), weights.tobytes())]
    assert found == [(0, -2, [5]), (0, 0.5, [3]), (2, 1, [0, 1, 4])]
    assert segments(ids[2:3].tobytes(), weights[2:3].tobytes()) == ()


def test_the_scale_is_alpha_over_r_or_over_its_root() -> None:
    assert adapter_scale(16, 5, False) == 3.2
    assert adapter_scale(16, 4, True) == 8.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_ids": []},
        {"prompt_ids": [11]},
        {"prompt_ids": [-1]},
        {"prompt_ids": [[1, 2]]},
        {"prompt_ids": [1.5]},
        {"adapter": [(ADAPTER, float("nan"))]},
        {"adapter": [(ADAPTER, 1.0), (ADAPTER, 2.0)]},
        {"adapter": [("pirate", 1.0)]},
        {"adapter": "pirate"},
        {"adapter": 5},
        {"adapter": [ADAPTER]},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": float("nan")},
        {"max_new_tokens": 0},
    ],
)
def test_a_request_that_cannot_be_served_is_refused_in_one_line(wrong: dict) -> None:
    with pytest.raises(RequestError) as refusal:
        check_request(Request(**{"prompt_ids": [1, 2], **wrong}), CONFIG)
    assert "\n" not in str(refusal.value)
