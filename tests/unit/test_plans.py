"""The plans of a batch: positions, rows of logits, and which adapters each token gets."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.build import random_adapter, random_model
from support.plans import mapping, metadata, writing

from refimpl import NUMPY, Precision, Request
from refimpl.adapter_slots import AdapterSlots, adapter_scale, bind_adapter
from refimpl.batch import ScheduledRequest, make_batch
from refimpl.checks import check_attention, check_slots
from refimpl.config import ModelConfig
from refimpl.errors import LoracleError, RequestError
from refimpl.kv_cache import KVCache
from refimpl.plans import NO_BLOCK, TILE, Batch, blocks_of, logits_indices, lora_mapping, positions
from refimpl.request import check_request

CONFIG = ModelConfig(11, 10, 7, 1, 4, 2, 4)
ADAPTER = random_adapter(CONFIG, 1)


def planned(scheduled: list[ScheduledRequest]) -> Batch:
    """The batch, over five blocks of two tokens, with an adapter in slot 1."""
    model, p = random_model(CONFIG), Precision("model", "float64")
    slots = AdapterSlots(model, p)
    slots.put(1, bind_adapter(ADAPTER, CONFIG))
    return make_batch(scheduled, KVCache(CONFIG, 5, 2, p), slots, NUMPY)


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
    scheduled = [ScheduledRequest([5, 6, 7], 0, [4, 1], [(1, 1.0)]), ScheduledRequest([9], 4, [0, 3, 2])]
    batch = planned(scheduled)
    assert batch.token_ids.tolist() == [5, 6, 7, 9]
    assert batch.positions.tolist() == [0, 1, 2, 4]
    assert batch.attention.slot_mapping.tolist() == [8, 9, 2, 4]
    assert batch.attention.query_start_loc.tolist() == [0, 3, 4]
    assert batch.attention.context_lens.tolist() == [3, 5]
    assert batch.attention.block_tables.tolist() == [[4, 1, -1], [0, 3, 2]]
    assert batch.logits_indices.tolist() == [2, 3]


def test_a_batch_without_tokens_is_refused() -> None:
    for scheduled in ([], [ScheduledRequest([], 0, [0])]):
        with pytest.raises(RequestError):
            planned(scheduled)


IDS = np.array([2, 2, -1, 0, 2, 0, -1], np.int32)
WEIGHTS = np.array([1, 1, 0, 0.5, 1, -2, 0])


def test_segments_name_each_adapter_and_weight_once_with_all_their_rows() -> None:
    [column] = mapping(IDS, WEIGHTS).columns
    segments = [(s.slot, s.weight, np.arange(7)[s.rows].tolist()) for s in column.segments]
    assert segments == [(0, -2, [5]), (0, 0.5, [3]), (2, 1, [0, 1, 4])]
    assert [column.rows[s.place].tolist() for s in column.segments] == [rows for _, _, rows in segments]
    assert mapping(IDS, WEIGHTS).slots == {0, 2}
    assert mapping(IDS[2:3], WEIGHTS[2:3]).columns[0].segments == ()


@given(ids=st.lists(st.integers(-1, 3), max_size=90))
def test_tiles_hold_every_row_with_an_adapter_once_and_one_adapter_each(ids: list[int]) -> None:
    [column] = mapping(np.array(ids, np.int32)).columns
    rows, starts = column.sorted_rows.tolist(), column.tile_starts.tolist()
    assert sorted(rows) == [t for t, slot in enumerate(ids) if slot >= 0]
    assert starts[0] == 0 and starts[-1] == len(rows)
    tiles = [rows[start:stop] for start, stop in itertools.pairwise(starts)]
    assert all(1 <= len(tile) <= TILE and len({ids[t] for t in tile}) == 1 for tile in tiles)
    assert len(tiles) == sum(-(-ids.count(slot) // TILE) for slot in set(ids) - {-1})
    assert column.adapters == len(set(ids) - {-1})


def test_rows_without_some_adapters_are_the_others() -> None:
    plan = mapping(IDS, WEIGHTS)
    assert plan.rows_without(frozenset([2])).tolist() == [2, 3, 5, 6]
    assert plan.rows_without(frozenset([0, 2])).tolist() == [2, 6]


@given(table=st.permutations(range(5)), passed=st.integers(0, 4))
def test_blocks_that_lie_side_by_side_are_a_slice(table: list[int], passed: int) -> None:
    """Blocks that have left the window stand at the front of a table, as -1."""
    blocks = np.array([NO_BLOCK] * passed + list(table)[passed:], np.int32)
    first, index = blocks_of(blocks)
    assert first == passed
    assert np.arange(5)[index].tolist() == list(table)[passed:]
    assert isinstance(index, slice) == all(b == a + 1 for a, b in itertools.pairwise(list(table)[passed:]))


# What is refused before anything is computed.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapters": [(7, 1.0)]}, r"adapter id 7 of token 0 is out of range: the slots in use are \[1\]"),
        ({"adapters": [(-2, 1.0)]}, "adapter id -2 of token 0 is out of range"),
        ({"token_ids": [5, 11, 7]}, "token id 11 of token 1 is out of range: its embedding has 11 rows"),
        ({"token_ids": [5, -1, 7]}, "token id -1 of token 1 is out of range"),
        ({"block_table": [4, 5]}, "request 0: its block table names block 5; the cache has 5"),
        ({"block_table": [4, -1]}, "request 0: its block table names block -1; the cache has 5"),
        ({"block_table": [4, 3]}, "slot 6 is owned twice: by token 2 and by token 3"),
    ],
)
def test_an_index_out_of_range_is_refused(change: dict, message: str) -> None:
    good = ScheduledRequest([5, 6, 7], 0, [4, 1], [(1, 1.0)])
    with pytest.raises(LoracleError, match=message):
        planned([replace(good, **change), ScheduledRequest([9], 4, [0, 2, 3])])


@pytest.mark.parametrize(
    ("starts", "contexts", "window", "message"),
    [
        ([0, 1], [11], None, "request 0: 11 tokens need 6 blocks of 2; its block table has 5"),
        ([0, 1], [0], None, "request 0: 1 new tokens in a context of 0"),
        ([0, 2], [4], None, "query_start_loc must rise from 0 to the 1 tokens"),
        ([0, 1], [4], 0, "window 0: a token sees at least itself"),
    ],
)
def test_a_context_that_cannot_be_is_refused(starts: list, contexts: list, window: int | None, message: str) -> None:
    tables = np.arange(5, dtype=np.int32)[None]
    plan = metadata(np.array(starts, np.int32), np.array(contexts, np.int32), tables, np.zeros((5, 2)))
    with pytest.raises(LoracleError, match=message):
        check_attention(plan, 1, window)


def test_a_window_excuses_the_blocks_that_it_has_passed() -> None:
    tables = np.array([[NO_BLOCK, 1, 2]], np.int32)
    plan = metadata(np.array([0, 1], np.int32), np.array([6], np.int32), tables, np.zeros((5, 2)))
    check_attention(plan, 1, 4)
    with pytest.raises(LoracleError, match="names block -1"):
        check_attention(plan, 1, 5)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([0, 12], r"slot_mapping\[1\] is 12: the cache has slots 0 to 11"),
        ([-1, 3], r"slot_mapping\[0\] is -1"),
        ([5, 5], "slot 5 is owned twice: by token 0 and by token 1"),
    ],
)
def test_a_bad_slot_is_refused(slots: list[int], message: str) -> None:
    with pytest.raises(LoracleError, match=message):
        check_slots(writing(np.array(slots, np.int32), np.zeros((3, 4))))


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
