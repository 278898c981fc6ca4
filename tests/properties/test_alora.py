"""Activated LoRA in a mixed batch: the base's rows up to the invocation, LoRA's from there on, and blocks of the cache
that all share who agree on what stands before it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Case, adapters, configs, random_adapter, random_model, requests
from support.compare import assert_equal_to_rounding
from support.dense import dense_logits, merged
from support.serving import WatchedEngine, finish, serve
from support.tables import every_table

from refimpl import NUMPY, REFERENCE, Adapter, Engine, Ops, Request, logits
from refimpl.alora import NEVER, activated, activation_start, keyed_adapters
from refimpl.config import EMBED, ModelConfig
from refimpl.errors import AdapterError
from refimpl.tools.merge import merged as merged_copy

BLOCK_SIZE = 4
CONFIG = ModelConfig(40, 20, 28, 2, 4, 2, 8, max_position_embeddings=160)


def as_alora(adapter: Adapter, *invocation: int) -> Adapter:
    """The same adapter, to act from its invocation on; without the embedding, on which no aLoRA is."""
    lora = {module: tensors for module, tensors in adapter.lora.items() if module != EMBED}
    return replace(adapter, config=replace(adapter.config, alora_invocation_tokens=invocation), lora=lora)


@st.composite
def alora_cases(draw: st.DrawFn) -> Case:
    """Two aLoRAs, plain LoRA and the base in one batch, and sums of them. Prompts of few different tokens, so that
    invocations stand in them often, several times, at the first token, at the last, overlapping, or nowhere."""
    config = draw(configs(max_layers=2))
    pool = draw(adapters(config, 3))
    invocations = [draw(st.lists(st.integers(0, 2), min_size=1, max_size=3)) for _ in range(2)]
    pool[:2] = [as_alora(one, *tokens) for one, tokens in zip(pool, invocations, strict=False)]
    batch = draw(requests(config, pool))
    batch += [replace(batch[0], adapter=[(pool[0], 0.5), (pool[2], 2.0)]), replace(batch[0], adapter=pool[1])]
    narrow = [replace(one, prompt_ids=[i % 3 for i in one.prompt_ids], stop_ids=()) for one in batch]
    return Case(random_model(config, draw(st.integers(0, 99))), pool, narrow)


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=3))
def test_the_start_is_where_the_last_occurrence_begins(prompt: list[int], invocation: list[int]) -> None:
    start = activation_start(prompt, invocation)
    places = [i for i in range(len(prompt) + 1) if prompt[i : i + len(invocation)] == invocation]
    assert start == ((places[-1] if places else NEVER) if invocation else 0)


@settings(max_examples=20)
@given(alora_cases())
def test_rows_before_the_start_are_the_bases_bit_for_bit(case: Case) -> None:
    model, _, batch = case
    ours = logits(model, batch)
    base = logits(model, [replace(request, adapter=None) for request in batch])
    for request, rows, plain in zip(batch, ours, base, strict=True):
        start = min(
            (
                activation_start(request.prompt_ids, adapter.config.alora_invocation_tokens)
                for adapter, _ in request.adapters
            ),
            default=NEVER,
        )
        assert np.array_equal(rows[:start], plain[:start])


@every_table
@settings(max_examples=20)
@given(case=alora_cases())
def test_a_mixed_batch_equals_each_alone_and_the_definition(ops: Ops, case: Case) -> None:
    model, _, batch = case
    for request, rows in zip(batch, logits(model, batch, ops), strict=True):
        assert_equal_to_rounding(rows, logits(model, [request], REFERENCE)[0])


def test_from_the_first_token_on_it_is_plain_lora() -> None:
    model, plain = random_model(CONFIG), random_adapter(CONFIG, 1)
    prompt = [7, 3, 9, 4, 8]
    ours = logits(model, [Request(prompt, as_alora(plain, 7))])[0]
    assert_equal_to_rounding(ours, dense_logits(merged(model, Request(prompt, plain)), prompt))
    assert np.array_equal(ours, logits(model, [Request(prompt, plain)])[0])


@every_table
@settings(max_examples=20)
@given(case=alora_cases(), chunk=st.integers(2, 9), spare=st.integers(0, 4))
def test_chunks_preemption_and_decoding_cannot_be_seen(ops: Ops, case: Case, chunk: int, spare: int) -> None:
    """Every row is that of one prefill of the same tokens whose start is that of the prompt alone: what is produced is
    always LoRA's, and moves nothing, even where it completes an invocation."""
    model, _, batch = case
    new, longest = 5, max(len(request.prompt_ids) for request in batch)
    room = -(-(longest + new) // BLOCK_SIZE) + spare
    engine, ids = serve(
        model, batch, ops, new, num_blocks=room, block_size=BLOCK_SIZE, max_batch_tokens=chunk, max_running=3
    )
    for i, request in zip(ids, batch, strict=True):
        n = len(request.prompt_ids)
        at_prompt = replace(ops, activation_start=lambda ids, tokens, n=n: activation_start(ids[:n], tokens))
        longer = replace(request, prompt_ids=[*request.prompt_ids, *engine.watch.tokens[i][:-1]])
        expected = logits(model, [longer], at_prompt)[0]
        positions = [position for position, _ in engine.watch.rows[i]]
        assert positions[-1] == len(expected) - 1
        assert_equal_to_rounding(np.stack([row for _, row in engine.watch.rows[i]]), expected[positions])


PREFIX = [7, 3, 9, 4, 5, 6, 1, 2]  # two blocks
CALL = [8, 8, 5, 6, 1]


def blocks_found(engine: Engine, request: Request) -> int:
    """Serve one request to its end; how many blocks it found in the cache when it was admitted."""
    engine.add(request, 2)
    blocks = 0
    while engine.busy:
        engine.step()
        blocks += sum(record.blocks_found for record in engine.last_step)
    return blocks


def engine_of(model_seed: int = 0) -> Engine:
    return WatchedEngine(random_model(CONFIG, model_seed), block_size=BLOCK_SIZE)


def test_blocks_before_the_invocation_are_shared_by_everyone() -> None:
    first, second, plain = (random_adapter(CONFIG, seed) for seed in (1, 2, 3))
    first, second = as_alora(first, 8, 8), as_alora(second, 5, 6, 1)
    for order in ([None, first, second], [second, None, first], [first, second, None]):
        engine = engine_of()
        counts = [blocks_found(engine, Request(PREFIX + CALL, one)) for one in order]
        assert counts[0] == 0
        # A start at 8 is the end of the second block; one at 10 is inside of the third.
        assert all(count >= 2 for count in counts[1:])
        assert blocks_found(engine, Request(PREFIX + CALL, plain)) == 0  # it acts in all of them
        again = [blocks_found(engine, Request(PREFIX + CALL, one)) for one in order]
        assert again == [3, 3, 3]  # each its own third block


def test_the_block_that_holds_the_start_is_its_own_adapters() -> None:
    one, other = as_alora(random_adapter(CONFIG, 1), 5), as_alora(random_adapter(CONFIG, 2), 5)
    prompt = [7, 3, 9, 4, 0, 5, 6, 1, 2, 2, 2, 2, 2]  # the start is 5, in the middle of the second block
    engine = engine_of()
    assert [blocks_found(engine, Request(prompt, adapter)) for adapter in (None, one, other, one, None)] == [
        0,
        1,
        1,
        3,
        3,
    ]


def test_the_start_is_part_of_the_key_of_what_follows_it() -> None:
    """An invocation that comes again moves the start: what an earlier turn computed after the first one is not its."""
    alora = as_alora(random_adapter(CONFIG, 1), 8)
    turn = [7, 8, 3, 3, 1, 2, 1, 2, 9]
    engine = engine_of()
    assert blocks_found(engine, Request(turn, alora)) == 0
    # Its blocks of positions 0 to 3 and 4 to 7 were computed with the start 1: with the start 9 they are the base's.
    assert blocks_found(engine, Request([*turn, 8, 3], alora)) == 0
    assert blocks_found(engine, Request([*turn, 8, 3], alora)) == 2
    assert blocks_found(engine, Request([*turn, 3, 3], alora)) == 2  # the start is 1 again
    assert keyed_adapters([(b"a", 1.0)], [1], 4) != keyed_adapters([(b"a", 1.0)], [2], 4)


def test_a_prompt_without_the_invocation_is_the_bases_to_the_end() -> None:
    alora, engine = as_alora(random_adapter(CONFIG, 1), 39), engine_of()
    assert blocks_found(engine, Request(PREFIX + CALL)) == 0
    assert blocks_found(engine, Request(PREFIX + CALL, alora)) == 3
    ids = [engine.add(Request(PREFIX, adapter, stop_ids=()), 6) for adapter in (None, alora)]
    finish(engine)
    assert engine.watch.tokens[ids[0]] == engine.watch.tokens[ids[1]]


@pytest.mark.parametrize("starts", [[], [[], []], [[0], [0]]])
def test_nothing_is_computed_for_a_batch_without_one(starts: list) -> None:
    ids, weights = np.zeros((3, 1), np.int32), np.ones((3, 1))
    same = activated(ids, weights, starts, [1, 2], np.zeros(3, np.int32))
    assert same[0] is ids and same[1] is weights


def test_it_cannot_be_merged() -> None:
    alora = as_alora(random_adapter(CONFIG, 1), 5)
    with pytest.raises(AdapterError, match="acts only from its invocation on"):
        merged_copy(random_model(CONFIG), alora, NUMPY)
