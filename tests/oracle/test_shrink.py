"""A failure becomes short enough to be read: sixteen faulty engines, each caught by sequences, each made small."""

from collections.abc import Sequence

import pytest
from faulty_engines import FAULTY, Judge, started
from support.testbed import BLOCK, small_testbed

from refimpl.engines.interface import EngineRequest
from refimpl.engines.ours import CAPABILITIES
from refimpl.oracle.cases.case import Case, Load, Run, Step, Unload, play
from refimpl.oracle.cases.scenarios import draw_sequence, variants
from refimpl.oracle.cases.shrink import Budget, minimise, shrink

judge = Judge(small_testbed())

# What is left of each failure: steps, and requests in them. (Measured; nothing shorter fails, as far as was searched.)
LEFT = {
    "stale after reload": (3, 1),
    "stale after a name is reused": (4, 1),
    "stale after an id is reused": (4, 1),
    "evicted slot not reloaded": (7, 3),
    "victim in use": (4, 3),
    "key without adapter": (3, 2),
    "key without weight": (3, 2),
    "key without parent": (3, 2),
    "key by name": (5, 2),
    "positions restart after a hit": (3, 2),
    "plan kept by shape": (5, 2),
    "cancelled runs on": (3, 2),
    "position after a chunk": (3, 2),
    "keys relative to the chunk": (3, 2),
    "published too early": (3, 2),
    "preempted keeps its place": (4, 5),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_engine_is_caught_and_its_failure_made_short(name: str) -> None:
    make, variant = FAULTY[name]
    testbed = small_testbed()
    how = variants(testbed, CAPABILITIES)[variant]
    engine = started(make, testbed, how)
    fails = judge.fails(engine)
    caught = next(c for i in range(100) if fails(c := draw_sequence(testbed, CAPABILITIES, 0, i, how, BLOCK)))
    small = shrink(caught, fails, Budget(calls=120, seconds=600))
    assert fails(small)
    steps, requests = LEFT[name]
    assert len(small.steps) <= steps and len(requests_of(small)) <= requests
    assert {t for a in requests_of(small) for t in a.prompt_ids} <= {0, 1}


def requests_of(case: Case) -> list[EngineRequest]:
    return [a for step in case.steps if isinstance(step, Run) for a in step.requests]


# Shrinking itself, on failures that are made up.


def run(*requests: EngineRequest) -> Run:
    return Run(requests)


LONG = Case(
    "long",
    (
        Load("one", "a"),
        Load("two", "b"),
        run(
            EngineRequest((7, 8, 9), "one", 4),
            EngineRequest((7, 8, 9), "two", 4, arrival_step=2),
            EngineRequest((5,), None),
        ),
        Load("one", "c"),
        Unload("two"),
        run(EngineRequest((7, 8, 9, 9), "one", 3), EngineRequest((4, 4), "one", 2, cancel_after=1)),
        Load("two", "a"),
        run(EngineRequest((1, 2, 3), "two", 1)),
    ),
    stateless=False,
)


def asks_three_tokens_of_c(case: Case) -> bool:
    """Somebody is asked three tokens or more while its name means c."""
    meaning = {}
    for step in case.steps:
        if isinstance(step, Load):
            meaning[step.name] = step.adapter
        elif isinstance(step, Run):
            for request in step.requests:
                if request.adapter is not None and meaning[request.adapter] == "c" and len(request.prompt_ids) >= 3:
                    return True
    return False


def test_all_that_is_of_no_account_goes() -> None:
    small = shrink(LONG, asks_three_tokens_of_c)
    assert small.steps == (Load("one", "c"), run(EngineRequest((0, 0, 0), "one", 1)))
    assert not small.stateless and small.name == LONG.name


def test_a_candidate_asks_no_name_that_is_not_loaded_and_every_one_is_new() -> None:
    seen: list[tuple[Step, ...]] = []

    def fails(case: Case) -> bool:
        known: set[str] = set()
        for step in case.steps:
            if isinstance(step, Load):
                known.add(step.name)
            elif isinstance(step, Unload):
                known.remove(step.name)  # a KeyError would fail the test
            else:
                assert step.requests and {a.adapter for a in step.requests} <= known | {None}
        assert case.steps not in seen
        seen.append(case.steps)
        return asks_three_tokens_of_c(case)

    shrink(LONG, fails)
    assert len(seen) > 10


def test_nothing_is_loaded_in_place_that_was_not_before() -> None:
    """An engine that cannot reload would refuse the candidate, and that would look like a failure."""
    careful = (Load("one", "a"), Unload("one"), Load("one", "c"), run(EngineRequest((1, 2, 3), "one")))

    def fails(case: Case) -> bool:
        known: set[str] = set()
        for step in case.steps:
            if isinstance(step, Load):
                assert step.name not in known
                known.add(step.name)
            elif isinstance(step, Unload):
                known.remove(step.name)
        return asks_three_tokens_of_c(case) and len(case.steps) > 2

    small = shrink(Case("careful", careful, stateless=False), fails)
    assert [type(s) for s in small.steps] == [Load, Unload, Load, Run]


def test_a_batch_loses_requests_tokens_and_length_and_stays_a_batch() -> None:
    batch = Case("batch", (run(*(EngineRequest((9, 3, i + 10), name, 4) for i, name in enumerate("abcdef"))),))
    neighbours = shrink(batch, lambda c: {"b", "e"} <= {a.adapter for a in requests_of(c)})
    assert neighbours.stateless
    assert neighbours.steps == (run(EngineRequest((0,), "b", 1), EngineRequest((0,), "e", 1)),)


def test_tokens_that_must_differ_stay_different() -> None:
    batch = Case("batch", (run(EngineRequest((9, 3, 12, 9), "a"), EngineRequest((9, 5), "b")),))

    def fails(case: Case) -> bool:
        first = requests_of(case)[0].prompt_ids
        return len(first) == 4 and first[0] == first[3] != first[1]

    assert requests_of(shrink(batch, fails))[0].prompt_ids in ((0, 1, 0, 0), (1, 0, 0, 1))


def test_the_budget_is_kept_and_what_was_found_by_then_is_given() -> None:
    calls = []

    def fails(case: Case) -> bool:
        calls.append(case)
        return asks_three_tokens_of_c(case)

    assert shrink(LONG, fails, Budget(calls=0)) == LONG and not calls
    some = shrink(LONG, fails, Budget(calls=4))
    assert len(calls) == 4 and asks_three_tokens_of_c(some) and len(some.steps) < len(LONG.steps)
    assert shrink(LONG, fails, Budget(seconds=0)) == LONG
    assert shrink(LONG, fails) == shrink(LONG, fails)


def test_a_case_that_fails_for_no_reason_in_it_becomes_one_request() -> None:
    assert shrink(LONG, lambda case: True).steps == (run(EngineRequest((0,), None, 1)),)


@pytest.mark.parametrize("needed", [{3}, {0, 7}, {1, 2, 3}, set(range(8))])
def test_minimise_keeps_what_is_needed(needed: set[int]) -> None:
    def fails(items: Sequence[int]) -> bool:
        return needed <= set(items)

    assert set(minimise(range(8), fails)) == needed


def test_an_engine_that_crashes_under_a_candidate_is_the_callers_business() -> None:
    def fails(case: Case) -> bool:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        shrink(LONG, fails)


def test_an_engine_that_answers_is_asked_again_for_every_candidate() -> None:
    """A clean engine never fails: the case stays as it is."""
    testbed = small_testbed()
    how = variants(testbed, CAPABILITIES)[0]
    engine = started(FAULTY["stale after reload"][0], testbed, how)
    harmless = Case("harmless", (Load("one", "made-0"), run(EngineRequest((1, 2), "one", 2))), stateless=False)
    assert not judge(play(engine, harmless, testbed), testbed)
    assert shrink(harmless, judge.fails(engine)) == harmless
