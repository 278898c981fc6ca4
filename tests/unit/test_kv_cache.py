"""Blocks are handed out, shared by key, kept while idle, and taken back."""

import itertools

import numpy as np
import pytest

from refimpl import Precision
from refimpl.config import ModelConfig
from refimpl.errors import CacheFull
from refimpl.kv_cache import NO_BLOCK, KVCache, prefix_key, select_victim
from refimpl.plans import slot_mapping

CONFIG = ModelConfig(11, 10, 7, 2, 4, 2, 4)


def cache(num_blocks: int = 4) -> KVCache:
    return KVCache(CONFIG, num_blocks, block_size=2)


def test_keys_and_values_have_one_array_for_each_layer() -> None:
    assert cache().k.shape == cache().v.shape == (2, 4, 2, 2, 4)


def test_blocks_come_in_rising_order_and_come_back() -> None:
    c = cache()
    assert c.allocate(3) == [0, 1, 2]
    c.free([0, 1, 2])
    assert c.allocate(3) == [0, 1, 2]
    assert (c.in_use, c.available) == (3, 1)


def test_all_or_none() -> None:
    c = cache()
    c.allocate(3)
    with pytest.raises(CacheFull, match="2 blocks of 2 tokens wanted, 1 can be had"):
        c.allocate(2)
    assert (c.in_use, c.available) == (3, 1)


def test_a_block_is_shared_until_its_last_owner_leaves() -> None:
    c = cache()
    (block,) = c.allocate(1)
    c.cache_block(block, b"key")
    assert c.match_prefix([b"key"]) == [block]
    assert c.ref_counts == {block: 2}
    c.free([block])
    assert c.ref_counts == {block: 1}
    c.free([block])
    assert (c.in_use, c.available) == (0, 4)
    assert c.match_prefix([b"key"]) == [block]  # idle, but still known


def test_finding_stops_at_the_first_gap() -> None:
    c = cache()
    a, b = c.allocate(2)
    c.cache_block(a, b"1")
    c.cache_block(b, b"3")
    assert c.match_prefix([b"1", b"2", b"3"]) == [a]
    assert c.match_prefix([b"2", b"3"]) == []


def test_the_first_block_under_a_key_is_kept() -> None:
    c = cache()
    a, b = c.allocate(2)
    c.cache_block(a, b"key")
    c.cache_block(b, b"key")
    assert c.match_prefix([b"key"]) == [a]
    c.free([b])
    c.free([a, a])
    assert c.available == 4


def test_the_idle_block_that_was_used_longest_ago_makes_room() -> None:
    c = cache(3)
    for key in (b"old", b"new"):
        (block,) = c.allocate(1)
        c.cache_block(block, key)
        c.free([block])
        c.allocate(1)  # so that the next key goes to another block
    assert c.match_prefix([b"old"]) == []
    assert c.match_prefix([b"new"]) != []


def test_of_one_request_the_end_is_forgotten_first() -> None:
    c = cache(3)
    blocks = c.allocate(3)
    for block, key in zip(blocks, (b"1", b"2", b"3"), strict=True):
        c.cache_block(block, key)
    c.free(blocks)
    assert c.allocate(1) == [blocks[2]]
    assert c.match_prefix([b"1", b"2", b"3"]) == blocks[:2]


def test_an_entry_without_a_block_is_passed_over() -> None:
    c = cache()
    blocks = c.allocate(2)
    c.free([NO_BLOCK, *blocks])
    assert c.available == 4


def test_the_victim_is_never_in_use() -> None:
    assert select_victim({1: 5, 2: 3, 3: 4}, {2: 1}) == 3
    assert select_victim({1: 5}, {1: 1}) is None
    assert select_victim({}, {}) is None


def test_a_slot_is_block_times_size_plus_offset() -> None:
    tables = np.array([[7, 2, 5], [4, NO_BLOCK, NO_BLOCK]], np.int32)
    got = slot_mapping(tables, np.array([2, 3, 4, 8, 1], np.int32), np.array([0, 4, 5], np.int32), 3)
    assert got.tolist() == [23, 6, 7, 17, 13]
    assert got.dtype == np.int32


def test_a_key_differs_as_soon_as_anything_does() -> None:
    parents, ids, bases = (b"", b"parent"), ([1, 2], [2, 1], [1, 2, 0]), (b"base", b"other")
    adapters = ((), [(b"A" * 32, 1.0)], [(b"A" * 32, 0.5)], [(b"A" * 32, 1.0), (b"B" * 32, 1.0)])
    adapters += ([(b"B" * 32, 1.0), (b"A" * 32, 1.0)],)
    precisions = (Precision(), Precision("model", "bfloat16"), Precision("model", "bfloat16", kv="float32"))
    every = list(itertools.product(parents, ids, bases, precisions, adapters))
    assert len({prefix_key(*arguments) for arguments in every}) == len(every)
