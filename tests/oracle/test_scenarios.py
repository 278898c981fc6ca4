"""What sequences are drawn: legal for whatever an engine can do, sensitive after every change, the same for a seed; and
no false alarm over our own engine."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from faulty_engines import FAULTY, Judge, StaleAfterReload, started
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from support.testbed import BLOCK, small_testbed

from refimpl import LoracleError
from refimpl.engines.interface import OPERATIONS, Capabilities, EngineRequest, Settings
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.oracle.cases import scenarios as sequences
from refimpl.oracle.cases.batches import draw_batch
from refimpl.oracle.cases.case import (
    Case,
    Exchange,
    Load,
    Run,
    Unload,
    keys_of,
    loaded_before,
    names_after,
    play,
    prepare,
    replay,
    requests_of,
)
from refimpl.oracle.cases.scenarios import SCENARIOS, draw_sequence, variants
from refimpl.oracle.cases.state_machine import machine_for, scripts
from refimpl.oracle.cases.testbed import Testbed
from refimpl.oracle.cases.testbed import settings as settings_of

DTYPES = ("float32", "bfloat16")
judges = {dtype: Judge(small_testbed(dtype)) for dtype in DTYPES}


def requests(case: Case) -> list[EngineRequest]:
    return [a for step in case.steps if isinstance(step, Run) for a in step.requests]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", range(3), ids=("plain", "chunks", "little room"))
def test_every_answer_of_our_own_engine_is_within_the_noise(dtype: str, variant: int) -> None:
    testbed = small_testbed(dtype)
    how = variants(testbed, CAPABILITIES)[variant]
    engine, preempted, found, cancelled = started(Ours, testbed, how), 0, 0, 0
    for i in range(13 if dtype == "float32" else 5):  # every scenario once, in float32
        case = draw_sequence(testbed, CAPABILITIES, 5, i, how, BLOCK)
        exchanges = play(engine, case, testbed)
        assert not judges[dtype](exchanges, testbed)
        preempted += engine.server.preemptions
        found += sum(e.response.first_position > 0 for e in exchanges)
        cancelled += sum(e.request.cancel_after is not None for e in exchanges)
    assert found > 20  # prefixes, or their answers would have rows from place 0 on
    assert cancelled > 0 and (preempted > 0) == (variant == 2)


@pytest.mark.parametrize(
    "name", ["stale after an id is reused", "key by name", "cancelled runs on", "published too early"]
)
def test_a_faulty_engine_is_caught_in_bfloat16_too(name: str) -> None:
    make, variant = FAULTY[name]
    testbed = small_testbed("bfloat16")
    how = variants(testbed, CAPABILITIES)[variant]
    engine = started(make, testbed, how)
    sequences = (draw_sequence(testbed, CAPABILITIES, 0, i, how, BLOCK) for i in range(100))
    assert any(judges["bfloat16"](play(engine, case, testbed), testbed) for case in sequences)


@pytest.mark.parametrize("stateless", [False, True], ids=("sequence", "batch"))
def test_what_names_mean_is_the_same_replayed_as_played(stateless: bool) -> None:
    """An engine, and whoever reads a case, agree on whose weights every request asked for."""
    testbed = small_testbed()
    how = settings_of(testbed) if stateless else variants(testbed, CAPABILITIES)[0]
    engine = started(Ours, testbed, how)
    if stateless:
        prepare(engine, testbed)
        case = draw_batch(testbed, CAPABILITIES, np.random.default_rng(3), "batch")
    else:
        case = draw_sequence(testbed, CAPABILITIES, 4, 5, how, BLOCK)
    exchanges = play(engine, case, testbed)
    replayed = requests_of(case, loaded_before(case, testbed))
    assert [(x.run, x.index, x.request, x.adapters) for x in exchanges] == [
        (run, i, request, keys_of(request, meaning)) for run, i, request, meaning in replayed
    ]
    meant: dict[str | None, set[object]] = {}
    for exchange in exchanges:
        meant.setdefault(exchange.request.adapter, set()).add(exchange.adapters)
    assert stateless or any(name and len(keys) > 1 for name, keys in meant.items())  # some name meant two adapters


def test_a_step_changes_what_names_mean_after_it_and_not_before() -> None:
    steps = (Load("one", "a"), Run(()), Load("one", "b"), Load("two", "a"), Unload("one"), Run(()), Unload("two"))
    assert [meaning for _, meaning in replay(steps)] == [
        {},
        {"one": "a"},
        {"one": "a"},
        {"one": "b"},
        {"one": "b", "two": "a"},
        {"two": "a"},
        {"two": "a"},
    ]
    assert [meaning for _, meaning in replay(steps[-1:], {"two": "a"})] == [{"two": "a"}]
    assert names_after(steps[-1], {"two": "a", "one": "b"}) == {"one": "b"}


def test_a_seed_is_a_campaign() -> None:
    testbed = small_testbed()
    drawn = [draw_sequence(testbed, CAPABILITIES, 1, i) for i in range(12)]
    assert drawn == [draw_sequence(testbed, CAPABILITIES, 1, i) for i in range(12)]
    others = [draw_sequence(testbed, CAPABILITIES, 2, i) for i in range(12)]
    assert not any(case.steps in [other.steps for other in others] for case in drawn)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_scenario_opens_a_sequence_even_where_only_every_second_one_is_played(
    stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr(sequences, "write", lambda name, moves, *_: opened.append(moves[0][0]))
    testbed = small_testbed()
    for i in range(0, 14 * 6 * stride, stride):
        draw_sequence(testbed, CAPABILITIES, 1, i, variants(testbed, CAPABILITIES)[2])
    assert set(opened) == set(SCENARIOS)


def abilities() -> st.SearchStrategy[Capabilities]:
    """Any subset of the operations, with sums or without."""
    subsets = st.frozensets(st.sampled_from(OPERATIONS))
    return st.builds(
        lambda can, sums: replace(CAPABILITIES, operations=can, features=frozenset(sums)),
        subsets,
        st.sampled_from([(), ("sums",)]),
    )


@settings(max_examples=40)
@given(data=st.data(), can=abilities(), count=st.sampled_from([1, 2, 5]), variant=st.integers(0, 2))
def test_a_sequence_asks_nothing_that_an_engine_cannot_do(
    data: st.DataObject, can: Capabilities, count: int, variant: int
) -> None:
    testbed = small_testbed("float32", count)
    ways = variants(testbed, can)
    how = ways[variant % len(ways)]
    case = data.draw(scripts(testbed, can, how))
    assert_legal(case, testbed, can, how)
    assert_legal(draw_sequence(testbed, can, 1, data.draw(st.integers(0, 500)), how), testbed, can, how)


def assert_legal(case: Case, testbed: Testbed, can: Capabilities, how: Settings) -> None:
    known: dict[str, str] = {}
    running = False
    assert not case.stateless
    for step in case.steps:
        if isinstance(step, Load):
            assert step.adapter in testbed.paths
            assert not running or "load" in can.operations
            assert step.name not in known or ("reload" in can.operations and known[step.name] != step.adapter)
            known[step.name] = step.adapter
        elif isinstance(step, Unload):
            assert "unload" in can.operations
            del known[step.name]
        else:
            running = True
            assert 1 <= len(step.requests) <= how.max_requests
            for request in step.requests:
                assert {x for x in (request.adapter, *dict(request.adapter_weights)) if x is not None} <= set(known)
                assert not request.adapter_weights or "sums" in can.features
                assert request.arrival_step == 0 or "arrivals" in can.operations
                assert request.cancel_after is None or "cancel" in can.operations
                assert request.prompt_ids and len(request.prompt_ids) + request.max_new_tokens <= how.max_length
        assert "evict" in can.operations or len(known) <= how.max_adapters


def test_after_every_change_somebody_is_asked_who_would_show_it() -> None:
    """A name that gets other weights is asked next, and something that was asked before."""
    testbed = small_testbed()
    changes = 0
    for i in range(60):
        case = draw_sequence(testbed, CAPABILITIES, 3, i, block=BLOCK)
        had: dict[str, set[str]] = {}
        before: set[tuple[int, ...]] = set()
        pending: set[str] = set()
        for step in case.steps:
            if isinstance(step, Load):
                pending |= {step.name} if had.get(step.name, set()) - {step.adapter} else set()
                had.setdefault(step.name, set()).add(step.adapter)
            elif isinstance(step, Run):
                for request in step.requests:
                    if request.adapter in pending and request.prompt_ids in before:
                        pending.remove(request.adapter)
                        changes += 1
                before |= {a.prompt_ids for a in step.requests}
                assert not pending, f"{pending} in {case}"
        assert not pending
    assert changes > 60


def test_prompts_share_blocks_across_adapters_depths_and_forks() -> None:
    testbed = small_testbed()
    prompts = {a.prompt_ids for i in range(30) for a in requests(draw_sequence(testbed, CAPABILITIES, 4, i, block=16))}
    lengths = {len(p) for p in prompts}
    assert 1 in lengths and max(lengths) > 48
    assert any(n % 16 not in (0, 15) for n in lengths)
    assert {len(set(p[:16])) for p in prompts if len(p) >= 16} - {1}


def test_without_an_adapter_there_is_no_sequence() -> None:
    with pytest.raises(LoracleError, match="needs an adapter"):
        draw_sequence(replace(small_testbed(), paths={}, adapters={}), CAPABILITIES, 0, 0)


# Hypothesis: what it says of engines, and how short its stories are.


def test_a_machine_finds_nothing_in_our_own_engine() -> None:
    machine = machine_for(lambda: a_new(Ours), small_testbed(), judges["float32"], block=BLOCK)
    run_state_machine_as_test(machine, settings=settings(max_examples=8, stateful_step_count=5))


def test_a_machine_finds_a_stale_adapter() -> None:
    machine = machine_for(lambda: a_new(StaleAfterReload), small_testbed(), judges["float32"], block=BLOCK)
    quick = settings(max_examples=10, stateful_step_count=4, phases=[Phase.generate])
    with pytest.raises(AssertionError, match="x noise; all that was done"):
        run_state_machine_as_test(machine, settings=quick)


def test_a_strategy_shrinks_to_one_scenario_of_the_simplest_kind() -> None:
    strategy = scripts(small_testbed(), CAPABILITIES, block=BLOCK)
    case = find(strategy, loads_in_place, settings=settings(max_examples=200))
    assert [type(s) for s in case.steps] == [Load, Load, Run, Load, Run]
    assert max(len(a.prompt_ids) for a in requests(case)) == 2 * BLOCK + 1


def loads_in_place(case: Case) -> bool:
    known: set[str] = set()
    for step in case.steps:
        if isinstance(step, Load):
            if step.name in known:
                return True
            known.add(step.name)
        elif isinstance(step, Unload):
            known.remove(step.name)
    return False


def a_new(make: type[Ours]) -> Ours:
    """Not started: the machine does that."""
    testbed = small_testbed()
    return make(model=testbed.model, adapters={path: testbed.adapters[key] for key, path in testbed.paths.items()})


def test_the_judge_fails_what_is_no_answer() -> None:
    """Or a faulty engine that crashes politely would pass here."""
    testbed = small_testbed()
    engine = started(Ours, testbed, variants(testbed, CAPABILITIES)[0])
    exchanges: Sequence[Exchange] = play(engine, draw_sequence(testbed, CAPABILITIES, 1, 0, block=BLOCK), testbed)
    assert not judges["float32"](exchanges, testbed)
    e = exchanges[-1]
    for wrong in (replace(e.response, error="no"), replace(e.response, token_ids=()), replace(e.response, logits=None)):
        assert judges["float32"]([replace(e, response=wrong)], testbed)
    assert e.response.logits is not None
    assert judges["float32"](
        [replace(e, response=replace(e.response, logits=e.response.logits * float("nan")))], testbed
    )
