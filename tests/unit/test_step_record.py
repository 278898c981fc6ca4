"""`engine.last_step`: what the engine says of its last step is what it did."""

import dataclasses

import numpy as np
import pytest
from support.build import random_adapter, random_model

from refimpl import Engine, Request, logits
from refimpl.config import ModelConfig
from refimpl.errors import LogitsError

CONFIG = ModelConfig(11, 10, 7, 1, 4, 2, 4, max_position_embeddings=64)
ADAPTERS = [random_adapter(CONFIG, seed) for seed in range(3)]


def test_a_prompt_is_computed_in_chunks_and_its_row_is_the_one_of_its_last_token() -> None:
    engine = Engine(random_model(CONFIG), max_batch_tokens=4)
    request = Request([1, 2, 3, 4, 5, 6], adapter=ADAPTERS[0], stop_ids=())
    expected = logits(engine.model, [request])[0]
    assert engine.last_step == ()
    engine.add(request, 1)
    for computed_before, tokens in ((0, 4), (4, 2)):
        engine.step()
        [record] = engine.last_step
        assert (record.request_id, record.computed_before, record.tokens) == (0, computed_before, tokens)
        assert record.adapter_slots == (0,) and record.blocks_found == 0 and not record.preempted
        assert np.allclose(record.logits, expected[computed_before + tokens - 1], rtol=0, atol=1e-12)
    engine.step()
    assert engine.last_step == ()  # nothing was left to do


def test_blocks_are_found_when_a_request_is_admitted_and_only_then() -> None:
    engine = Engine(random_model(CONFIG), block_size=2)
    for blocks in (0, 2):
        engine.add(Request([1, 2, 3, 4, 5], stop_ids=()), 2)
        engine.step()
        [record] = engine.last_step
        assert (record.blocks_found, record.computed_before, record.tokens) == (blocks, 2 * blocks, 5 - 2 * blocks)
        engine.step()
        assert engine.last_step[0].blocks_found == 0


def test_the_rows_of_the_batch_come_first_then_whoever_was_preempted() -> None:
    """Two requests outgrow four blocks: the younger gives way, and finds its own blocks when it comes back."""
    engine = Engine(random_model(CONFIG), num_blocks=4, block_size=2, prefix_caching=False)
    for i in (1, 2):
        engine.add(Request([i, 2, 3], stop_ids=()), 4)
    preempted = []
    while engine.busy:
        before = {state.id: state.computed for state in engine.running}
        engine.step()
        records = engine.last_step
        assert [record.preempted for record in records] == sorted(record.preempted for record in records)
        for record in records:
            assert record.computed_before == before.get(record.request_id, 0)
            assert (record.tokens == 0) == record.preempted == (record.logits.size == 0)
        preempted += [record.request_id for record in records if record.preempted]
    assert preempted == [1] and engine.preemptions == 1


def test_an_adapter_that_lost_its_slot_is_named() -> None:
    engine = Engine(random_model(CONFIG), max_adapters=1)
    for i, evicted in ((0, ()), (1, (ADAPTERS[0].name,)), (1, ())):
        engine.add(Request([1, 2], adapter=ADAPTERS[i]), 1)
        engine.step()
        assert engine.last_step[0].evicted == evicted and engine.last_step[0].adapter_slots == (0,)


def test_the_row_from_which_no_token_could_be_chosen_can_be_looked_at() -> None:
    model = random_model(CONFIG)
    model = dataclasses.replace(model, norm=np.full_like(model.norm, np.nan))
    engine = Engine(model)
    engine.add(Request([1, 2]), 1)
    with pytest.raises(LogitsError):
        engine.step()
    assert np.isnan(engine.last_step[0].logits).all()
