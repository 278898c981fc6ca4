"""Prefixes that are found again, requests that are preempted, adapters that are evicted: none of it can be seen."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from support.build import Case, adapters, configs, families, random_model
from support.serving import assert_as_if_alone, finish, serve
from support.tables import every_table

from refimpl import Ops

BLOCK_SIZE = 3


@st.composite
def reuses(draw: st.DrawFn) -> Case:
    """Requests over several adapters whose prompts share pieces of one block."""
    config = draw(configs(max_layers=2))
    pool = draw(adapters(config, draw(st.integers(2, 3))))
    return Case(random_model(config, draw(st.integers(0, 99))), pool, draw(families(config, pool, BLOCK_SIZE)))


def check_prefix_hit_equals_miss(ops: Ops, case: Case) -> None:
    """The same requests twice through one engine: the second time, all of their full blocks are found."""
    model, _, requests = case
    engine, first = serve(model, requests, ops, block_size=BLOCK_SIZE, max_running=2)
    before = engine.watch.hits
    second = [engine.add(request, 4) for request in requests]
    finish(engine)
    assert engine.watch.hits - before >= sum((len(r.prompt_ids) - 1) // BLOCK_SIZE for r in requests)
    assert_as_if_alone(engine, [*first, *second], [*requests, *requests])


def check_preemption_cannot_be_seen(ops: Ops, case: Case, spare: int, prefix_caching: bool) -> None:
    """As few blocks as the longest request needs, or a few more, for all of them at once."""
    model, _, requests = case
    new, longest = 7, max(len(r.prompt_ids) for r in requests)
    room = -(-(longest + new) // BLOCK_SIZE) + spare
    engine, ids = serve(
        model, requests, ops, new, num_blocks=room, block_size=BLOCK_SIZE, prefix_caching=prefix_caching
    )
    if model.config.sliding_window is None and spare == 0:
        assert engine.preemptions > 0
    assert_as_if_alone(engine, ids, requests, new)


def check_sampled_tokens_are_a_requests_own(ops: Ops, case: Case, chunk: int) -> None:
    """The draw depends on the seed and the number of tokens, and not on neighbours, chunks or preemption."""
    model, _, requests = case
    requests = [replace(r, temperature=r.temperature or 1.5, seed=i // 2) for i, r in enumerate(requests)]
    room = -(-(max(len(r.prompt_ids) for r in requests) + 6) // BLOCK_SIZE)
    engine, ids = serve(model, requests, ops, 6, num_blocks=room, block_size=BLOCK_SIZE, max_batch_tokens=chunk)
    assert_as_if_alone(engine, ids, requests, 6)


def check_few_adapter_slots_are_enough(ops: Ops, case: Case) -> None:
    """Slots for two adapters only, and every name is used twice: a slot is reused as soon as its users have left."""
    model, pool, requests = case
    renamed = {a: replace(a, name=f"name {i // 2}") for i, a in enumerate(pool)}
    requests = [replace(r, adapter=[(renamed[a], w) for a, w in r.adapters]) for r in requests]
    engine, first = serve(model, requests, ops, max_adapters=2, block_size=BLOCK_SIZE, max_running=3)
    second = [engine.add(request, 4) for request in reversed(requests)]
    finish(engine)
    assert_as_if_alone(engine, [*first, *second], [*requests, *reversed(requests)])


@every_table
@settings(max_examples=20)
@given(case=reuses())
def test_a_prefix_hit_equals_a_miss(ops: Ops, case: Case) -> None:
    check_prefix_hit_equals_miss(ops, case)


@every_table
@settings(max_examples=25)
@given(case=reuses(), spare=st.integers(0, 3), prefix_caching=st.booleans())
def test_preemption_cannot_be_seen(ops: Ops, case: Case, spare: int, prefix_caching: bool) -> None:
    check_preemption_cannot_be_seen(ops, case, spare, prefix_caching)


@every_table
@settings(max_examples=20)
@given(case=reuses(), chunk=st.sampled_from([1, 4, 64]))
def test_sampled_tokens_depend_on_the_request_alone(ops: Ops, case: Case, chunk: int) -> None:
    check_sampled_tokens_are_a_requests_own(ops, case, chunk)


@every_table
@settings(max_examples=20)
@given(case=reuses())
def test_few_adapter_slots_are_enough(ops: Ops, case: Case) -> None:
    check_few_adapter_slots_are_enough(ops, case)
