"""Keys, values and adapters in one pool: who gives way, who waits, and what is loaded ahead."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from support.build import as_dora, random_adapter, random_model
from support.serving import assert_as_if_alone, finish, serve

from refimpl import NUMPY, Engine, Precision, Request
from refimpl.adapter import Adapter
from refimpl.config import EMBED, LM_HEAD, ModelConfig
from refimpl.errors import CacheFull, LoracleError
from refimpl.policies import loaded_first
from refimpl.unified_pool import UnifiedPool

CONFIG = ModelConfig(11, 10, 7, 1, 4, 2, 4, max_position_embeddings=64)
MODEL = random_model(CONFIG)
P64 = Precision("model", "float64")
MODULE = (0, "q_proj")


def adapter(rank: int, seed: int = 0, **options: object) -> Adapter:
    return random_adapter(CONFIG, seed, rank, modules=("q_proj",), name=f"{rank}/{seed}", **options)


# One block of two tokens has 2 * 2 * 2 * 4 = 32 numbers; q_proj has A [r, 10] and B [16, r], each rounded up to 8.
SMALL, MIDDLE, LARGE = adapter(1), adapter(3), adapter(8)
BLOCKS = {SMALL: 1, MIDDLE: 3, LARGE: 7}


def pool(num_blocks: int, **options: object) -> UnifiedPool:
    return UnifiedPool(MODEL, P64, NUMPY, num_blocks, 2, **options)


def loaded(shared: UnifiedPool) -> set[Adapter]:
    return set(shared.adapters.slot_of)


def test_an_adapter_takes_the_blocks_that_its_rank_needs() -> None:
    shared = pool(20)
    for each, count in BLOCKS.items():
        before = shared.cache.available
        slot = shared.adapters.acquire(each)
        assert before - shared.cache.available == count == shared.adapters.blocks_for([each])
        assert np.array_equal(shared.adapters.slots.at(MODULE)[slot].A, each.lora[MODULE].A)
    assert shared.adapters.slots.nbytes(0) == (10 + 16) * 8


def test_the_one_used_longest_ago_gives_way_be_it_a_block_or_an_adapter() -> None:
    shared = pool(6)
    shared.adapters.release(shared.adapters.acquire(MIDDLE))
    [block] = shared.cache.allocate(1)
    shared.cache.cache_block(block, b"key")
    shared.cache.free([block])
    shared.cache.allocate(2)  # nothing is free now
    assert shared.cache.available == 4
    shared.cache.allocate(1)
    assert loaded(shared) == set() and shared.cache.match_prefix([b"key"]) == [block]
    shared.cache.free([block])
    shared.adapters.release(shared.adapters.acquire(SMALL))  # one of the two blocks that the other one left
    shared.cache.allocate(2)
    assert loaded(shared) == {SMALL} and shared.cache.match_prefix([b"key"]) == []


def test_an_adapter_makes_room_for_another_but_not_while_it_is_used() -> None:
    shared = pool(9)
    slot = shared.adapters.acquire(MIDDLE)
    with pytest.raises(CacheFull, match="8/0 takes 7 blocks, 6 can be had"):
        shared.adapters.acquire(LARGE)
    assert loaded(shared) == {MIDDLE} and shared.adapters.ref_counts == {slot: 1} and shared.cache.available == 6
    shared.adapters.release(slot)
    shared.adapters.acquire(LARGE)
    assert loaded(shared) == {LARGE} and shared.cache.available == 2


def test_full_is_said_before_anything_has_changed() -> None:
    shared = pool(8)
    shared.adapters.release(shared.adapters.acquire(SMALL))
    blocks = shared.cache.allocate(6)
    before = shared.cache.memory.copy()
    assert shared.adapters.acquire_all([(SMALL, 1.0), (MIDDLE, 1.0)]) is None
    with pytest.raises(CacheFull):
        shared.adapters.acquire(MIDDLE)
    with pytest.raises(CacheFull):
        shared.cache.allocate(3)
    assert loaded(shared) == {SMALL} and not shared.adapters.ref_counts and shared.cache.available == 2
    assert np.array_equal(before, shared.cache.memory) and shared.cache.in_use == len(blocks)


def test_the_slots_can_be_bounded_as_well() -> None:
    shared = pool(20, capacity=1)
    shared.adapters.release(shared.adapters.acquire(SMALL))
    slot = shared.adapters.acquire(MIDDLE)
    assert loaded(shared) == {MIDDLE} and shared.cache.available == 17
    with pytest.raises(CacheFull, match="all 1 slots are in use"):
        shared.adapters.acquire(SMALL)
    shared.adapters.release(slot)
    shared.adapters.prefetch([SMALL])  # nobody is evicted for what may never come
    assert loaded(shared) == {MIDDLE}


def test_an_evicted_adapter_is_copied_again_without_being_bound_again() -> None:
    bound = []

    def bind_adapter(each, config, scale):
        bound.append(each)
        return NUMPY.bind_adapter(each, config, scale)

    for host_capacity, expected in ((None, 2), (1, 3)):
        bound.clear()
        shared = UnifiedPool(MODEL, P64, replace(NUMPY, bind_adapter=bind_adapter), 8, 2, None, host_capacity)
        for each in (LARGE, MIDDLE, LARGE):
            slot = shared.adapters.acquire(each)
            assert np.array_equal(shared.adapters.slots.at(MODULE)[slot].B, each.lora[MODULE].B)
            shared.adapters.release(slot)
        assert shared.adapters.loads == 3 and len(bound) == expected
        assert len(shared.adapters.host) == (2 if host_capacity is None else 1)


def test_an_unloaded_adapter_leaves_nothing() -> None:
    shared = pool(8)
    slot = shared.adapters.acquire(MIDDLE)
    with pytest.raises(LoracleError, match="in use by 1"):
        shared.adapters.unload(MIDDLE)
    shared.adapters.release(slot)
    shared.adapters.unload(MIDDLE)
    assert shared.cache.available == 8 and shared.adapters.idle_blocks == 0 and len(shared.adapters.host) == 0
    assert MODULE not in shared.adapters.slots.at(MODULE) and not shared.adapters.slots.slots


# The queue.


def test_the_queue_is_loaded_ahead_and_none_of_it_is_evicted_for_it() -> None:
    shared = pool(8)
    for each in (SMALL, MIDDLE):
        shared.adapters.release(shared.adapters.acquire(each))
    shared.adapters.prefetch([SMALL, LARGE])  # 7 blocks are there only without SMALL, which the queue asks for first
    assert loaded(shared) == {SMALL, LARGE}
    shared.adapters.prefetch([LARGE, MIDDLE])
    assert loaded(shared) == {SMALL, LARGE}
    shared.adapters.prefetch([MIDDLE, LARGE])
    assert loaded(shared) == {SMALL, LARGE}


def test_the_engine_loads_ahead_what_waits() -> None:
    engine = Engine(MODEL, NUMPY, num_blocks=20, block_size=2, max_running=1, pool=UnifiedPool)
    for each in (SMALL, MIDDLE, LARGE):
        engine.add(Request([1, 2, 3], each), 3)
    engine.step()
    assert set(engine.adapters.slot_of) == {SMALL, MIDDLE}  # as many as may run at once
    assert engine.adapters.loads == 2


def running(engine: Engine) -> list[Adapter]:
    return [state.request.adapters[0][0] for state in engine.running]


def crowded(patience: int | None) -> Engine:
    """MIDDLE is in use and the pool nearly full; one who needs LARGE waits before others who need MIDDLE."""
    engine = Engine(MODEL, NUMPY, num_blocks=11, block_size=2, pool=partial(UnifiedPool, patience=patience))
    engine.add(Request([1, 2, 3], MIDDLE, stop_ids=()), 4)
    engine.step()
    engine.add(Request([4, 5], LARGE, stop_ids=()), 2)
    for i in range(3):
        engine.add(Request([6, i], MIDDLE, stop_ids=()), 2)
    engine.step()
    return engine


def test_whoever_needs_no_load_is_not_blocked_by_one_who_does() -> None:
    assert running(crowded(None)) == [MIDDLE] * 4
    assert running(crowded(0)) == [MIDDLE]


@pytest.mark.parametrize("patience", [0, 1, 3, 64])
def test_nobody_is_overtaken_more_often_than_the_patience_says(patience: int) -> None:
    """New requests for the adapter that is there keep coming: without an end nobody else would ever have his turn."""
    engine = Engine(
        MODEL, NUMPY, num_blocks=11, block_size=2, max_running=2, pool=partial(UnifiedPool, patience=patience)
    )
    engine.add(Request([1, 2, 3], MIDDLE, stop_ids=()), 4)
    engine.step()
    waiting = engine.add(Request([4, 5], LARGE, stop_ids=()), 2)
    overtaken = 0
    for i in range(300):
        engine.add(Request([6, i % 11], MIDDLE, stop_ids=()), 3)
        engine.step()
        states = [state for state in engine.waiting if state.id == waiting]
        if not states:
            break
        overtaken = states[0].overtaken
    assert patience <= overtaken <= patience + 1  # asked once a step, in which two are admitted at most


def test_without_an_end_to_patience_one_can_be_overtaken_for_ever() -> None:
    engine = crowded(None)
    for i in range(100):
        engine.add(Request([6, i % 11], MIDDLE, stop_ids=()), 3)
        engine.step()
    assert LARGE in [state.request.adapters[0][0] for state in engine.waiting]


def test_the_order_of_the_queue() -> None:
    assert loaded_first([False, True, False, True], [2, 0, 0, 0], 3) == [1, 3, 0, 2]
    assert loaded_first([False, True, False, True], [2, 0, 0, 0], 2) == [0, 1, 3, 2]
    assert loaded_first([False, True], [9, 0], None) == [1, 0]
    assert loaded_first([False, True], [0, 0], 0) == [0, 1]


# Requests.


def test_what_could_never_fit_is_refused_at_once() -> None:
    engine = Engine(MODEL, NUMPY, num_blocks=8, block_size=2, pool=UnifiedPool)
    with pytest.raises(CacheFull, match="need 2 KV blocks of 2 tokens, its adapters 7; the cache has 8"):
        engine.add(Request([1, 2], LARGE), 3)
    engine.add(Request([1, 2], LARGE), 1)
    finish(engine)


@pytest.mark.parametrize("num_blocks", [12, 16, 60])
def test_every_kind_of_adapter_serves_as_if_alone(num_blocks: int) -> None:
    """DoRA, biases, sums, a layer of its own, more tokens than the base has, and none, in little room and in much."""
    rng = np.random.default_rng(0)
    plain = random_adapter(CONFIG, 5, 2, modules=("v_proj", "embed_tokens", "lm_head"), lora_bias=True)
    larger = replace(
        adapter(2, 6), replaced={EMBED: rng.standard_normal((13, 10)), LM_HEAD: rng.standard_normal((13, 10))}
    )
    requests = [
        Request([1, 2, 3], as_dora(SMALL, MODEL, 1)),
        Request([1, 2, 3], [(SMALL, 0.5), (MIDDLE, -2.0)]),
        Request([4, 5, 6, 7], plain),
        Request([1, 12], larger),
        Request([1, 2, 3]),
        Request([9], LARGE),
    ]
    engine, ids = serve(MODEL, requests, NUMPY, num_blocks=num_blocks, block_size=2, pool=UnifiedPool)
    assert_as_if_alone(engine, ids, requests)
    assert engine.adapters.loads >= 6
