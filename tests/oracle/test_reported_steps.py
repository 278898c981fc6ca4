"""An engine that tells its steps: they are read as they were, and rules and names are held against them."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.causes import asked, cause_of_bug
from support.lines import ADAPTERS, made_line, reported
from support.testbed import small_testbed

from refimpl import NUMPY, Ops
from refimpl.adapter_slots import AdapterSlots
from refimpl.arrays import Array, Precision
from refimpl.config import Module
from refimpl.engines.computed import clash, read_steps
from refimpl.engines.interface import Computed, EngineError, EngineResponse
from refimpl.engines.ours import Ours
from refimpl.oracle.causes.candidate_schedules import SIMPLE
from refimpl.oracle.causes.line import Line, Reports
from refimpl.oracle.causes.reported import reported_steps
from refimpl.oracle.causes.reported_regions import regions_of_reported
from refimpl.oracle.causes.rule import Observed
from refimpl.oracle.causes.schedule import Batch, Schedule, Scheduled, Step
from refimpl.oracle.causes.scheduled_names import OfWhom, keys_in_steps, names_in_steps, table_of
from refimpl.oracle.causes.scheduled_rule import InBatch, Scheduler
from refimpl.oracle.causes.statement import CauseReport, Change
from refimpl.oracle.causes.step_regions import regions_in_steps
from refimpl.oracle.diagnosis.clock import Clock
from refimpl.oracle.engine_driver import EngineDriver
from refimpl.oracle.explain import PARTLY, UNREPORTED, unreported
from refimpl.plans import LoraMapping

a_request = st.builds(  # no sums: where their other adapters are an engine does not tell
    lambda ids, produced, adapters: Scheduled(len(ids) + produced, len(ids), adapters, (*ids, *[0] * produced)),
    st.lists(st.sampled_from([0, 1]), min_size=1, max_size=12),
    st.integers(0, 4),
    st.sampled_from(ADAPTERS[:4]),
)
a_line = st.lists(st.lists(a_request, min_size=1, max_size=5), min_size=1, max_size=4)
a_schedule = st.builds(
    Schedule,
    chunk=st.sampled_from([None, 1, 4]),
    budget=st.sampled_from([None, 5, 16]),
    running=st.sampled_from([None, 2]),
    adapters=st.sampled_from([None, 1, 2, 3]),
    block=st.sampled_from([None, 2, 4]),
    by_slot=st.booleans(),
    in_turn=st.booleans(),
    evicts=st.booleans(),
)


def as_computed(batch: Batch, steps: Sequence[Step]) -> list[list[tuple]]:
    return [
        [(*one, batch[one.request].slot_in(step.slots)) for one in step.rows] for step in steps if not step.is_cached
    ]


@given(a_line, a_schedule)
@settings(deadline=None)
def test_reported_steps_are_those_that_were_made(some: list[Batch], schedule: Schedule) -> None:
    line = Line(some)
    batches = reported(line, schedule)
    assert all(not clash([one.computed for one in batch]) for batch in batches)
    for n, (batch, steps) in enumerate(zip(batches, reported_steps(batches), strict=True)):
        made = line.steps(n, schedule)
        assert as_computed(batch, steps) == as_computed(batch, made)
        assert {one.rows for one in steps if one.is_cached} == {one.rows for one in made if one.is_cached}
        for request in batch:
            assert read_steps(request.computed, request.tokens) == request.computed


def test_what_is_computed_again_counts_where_that_was_last() -> None:
    """A request that was preempted in its third step, and begins anew in the fifth; one more token than was asked."""
    first = [
        Computed(1, 0, 0, 3),
        Computed(2, 0, 3, 2),
        Computed(3, 1, 5, 1),
        Computed(5, 0, 0, 6),
        Computed(6, 0, 6, 2),
    ]
    other = [Computed(3, 0, 0, 1), Computed(4, 0, 1, 1)]
    batch = [Scheduled(7, 5, (), computed=tuple(first)), Scheduled(2, 1, (), computed=tuple(other))]
    (steps,) = reported_steps([batch])
    assert [[(one.request, one.first, one.length) for one in step.rows] for step in steps] == [
        [(1, 0, 1)],
        [(1, 1, 1)],
        [(0, 0, 6)],
        [(0, 6, 1)],
    ]


def test_an_adapter_is_in_its_slot_until_another_one_is() -> None:
    a, b, c = ADAPTERS[1:4]
    batches = [
        [Scheduled(1, 1, one, computed=(Computed(1, 0, 0, 1, slot),))] for one, slot in ((a, 0), (b, 1), (c, 0), (a, 1))
    ]
    steps = [of[0] for of in reported_steps(batches)]
    assert [one.slots for one in steps] == [("a", None), ("a", "b"), ("c", "b"), ("c", "a")]
    assert [one.loaded for one in steps] == [("a",), ("b",), ("c",), ("a",)]
    assert steps[2].history == (("a", "c"), ("b",)) and steps[3].history == (("a", "c"), ("b", "a"))
    assert steps[3].moves == (1, 2) and steps[3].places == (1,)
    line = Line([*batches])
    some = [line.reported_occupants(n, 0) for n in (0, 2, 3)]
    assert some == [{2: ("a",)}, {2: ("a", "c")}, {2: ("b", "a")}]


@pytest.mark.parametrize(("runs_on", "now"), [(True, "b"), (False, "a")])
def test_a_slot_that_is_given_away_while_it_is_used(runs_on: bool, now: str) -> None:
    """a goes on in slot 0 beside b, for which it was taken: b's weights are there. A request that waited meanwhile has
    its own again."""
    a, b = ADAPTERS[1:3]
    middle = [Computed(2, 1, 1, 1, 0)] * runs_on
    first = [Computed(1, 0, 0, 1, 0), *middle, Computed(3, 0, 1 + runs_on, 1, 0)]
    batch = [
        Scheduled(2 + runs_on, 1, a, computed=tuple(first)),
        Scheduled(1, 1, b, computed=(Computed(2, 0, 0, 1, 0),)),
    ]
    (steps,) = reported_steps([batch])
    assert [one.slots for one in steps] == [("a",), ("b",), (now,)]
    assert steps[2].loaded == (() if runs_on else ("a",)) and steps[2].places == (0, 0)


ODD = Schedule(
    5, 19, adapters=2, evicts=True, by_row=True, compacts=True, order="shortest", running=3, at_end=True, if_room=True
)


@pytest.mark.parametrize(
    "words",
    [
        "the last of its adapter's prompt tokens of a step",
        "the step in which its adapter moves into a slot",
        "rows of a step from number 8 on",
        "an adapter in a slot that another one had before",
        "decode steps beside prompt tokens",
    ],
)
def test_a_rule_by_reported_steps_needs_no_search(words: str) -> None:
    """Of an engine with so many limits that nobody comes to its schedule, and no time to look for it."""
    unknown = made_line(3, 6)
    line = Line(reported(unknown, ODD))
    requests = []
    for number, here in itertools.product(range(6), range(3)):
        steps = unknown.steps(number, ODD)
        members = next(one for one in regions_in_steps(line.batches[number], here, ODD, steps) if one.words == words)
        requests.append(InBatch(Observed({}, [], members.members.astype(int)), line, number, here))
    assert any((one.observed.present == 1).any() for one in requests)
    rule = Scheduler(Clock(0.0)).rule(requests)
    assert rule.wrong == 0 and rule.tokens and not rule.assumes


def test_answers_without_steps_take_none_of_the_others_away() -> None:
    """An engine that failed to answer one request, and all of another batch: it tells no steps of these."""
    words, without = "the last row of a step", {(1, 0), *((3, i) for i in range(8))}
    unknown = made_line(3, 6)
    batches = reported(unknown, ODD)
    line = Line(
        [
            [replace(one, computed=()) if (n, i) in without else one for i, one in enumerate(batch)]
            for n, batch in enumerate(batches)
        ]
    )
    requests = []
    for number, here in itertools.product(range(6), range(3)):
        steps = unknown.steps(number, ODD)
        members = next(one for one in regions_in_steps(batches[number], here, ODD, steps) if one.words == words).members
        known_line = line if line.knows_steps(number, here) else None
        assert (known_line is None) == ((number, here) in without)
        # Whoever has no steps says nothing here, as where its error has no numbers.
        present = members.astype(int) if known_line else np.full(len(members), -1)
        requests.append(InBatch(Observed({}, [], present), known_line, number, here))
    rule = Scheduler(Clock(0.0)).rule(requests)
    assert rule.tokens == (words,) and rule.wrong == 0
    assert line.reported_occupants(1, 0) == {} == line.reported_occupants(3, 1)
    name, seen = "the row before in its step", []
    for one in requests:
        keys = keys_in_steps(OfWhom(one.line, one.number, one.here, {}), name, SIMPLE)
        seen.append(OfWhom(one.line, one.number, one.here, {t: frozenset([key]) for t, key in enumerate(keys)}))
    assert name in [words for words, *_ in names_in_steps(seen, Scheduler(Clock(0.0)))]


def test_a_sequence_without_steps_is_not_worked_out_where_the_engine_tells_others() -> None:
    """Each sequence is a line of its own: of one whose answers are all errors, or have no steps, nothing is known."""
    reports, unknown = Reports(), made_line(3, 4)
    told_line, silent = Line(reported(unknown, ODD), reports=reports), Line(made_line(4, 2).batches, reports=reports)
    assert silent.knows_steps(0, 0)  # as long as nobody knows that the engine tells any
    assert told_line.is_reported and silent.is_reported and not silent.knows_steps(0, 0)
    assert silent.steps(0, SIMPLE) == [] and silent.reported_occupants(0, 0) == {}


def test_what_was_found_in_a_cache_and_what_was_computed_again() -> None:
    steps = (
        Computed(0, 0, 2, 2),
        Computed(1, 0, 4, 1),
        Computed(4, 0, 2, 3),
        Computed(5, 0, 5, 1),
        Computed(6, 0, 6, 1),
    )
    request = Scheduled(7, 4, ADAPTERS[1], computed=steps)
    sets = {one.words: one.members.astype(int).tolist() for one in regions_of_reported(request)}
    assert sets == {
        "requests of which first tokens were found in a cache": [1] * 7,
        "tokens behind first ones that were found in a cache": [0, 0, 1, 1, 1, 1, 1],
        "the step behind first tokens that were found in a cache": [0, 0, 1, 1, 1, 0, 0],
        "requests of which tokens are computed again": [1] * 7,
        "tokens that are computed again": [0, 0, 1, 1, 1, 0, 0],
        "tokens behind some that are computed again": [0, 0, 0, 0, 0, 1, 1],
    }
    plain = Scheduled(3, 3, (), computed=(Computed(0, 0, 0, 3),))
    assert not any(
        one.members.any() for some in (plain, replace(plain, computed=())) for one in regions_of_reported(some)
    )


def test_tokens_that_are_computed_again_with_produced_ones_have_names() -> None:
    """A request is preempted when it has produced four tokens; then its prompt and those are one part of a step."""
    steps = (Computed(0, 0, 0, 20), *(Computed(n, 0, 19 + n, 1) for n in range(1, 4)), Computed(5, 0, 0, 24))
    line = Line(
        [[Scheduled(24, 20, (("a", 1.0),), computed=steps), Scheduled(3, 3, (), computed=(Computed(5, 24, 0, 3),))]]
    )
    table = table_of(line, 0, SIMPLE)
    assert table.codes.shape == (len(table.names), 27)


@pytest.mark.parametrize(
    "name", ["the row before in its step", "the adapter in slot 1", "the adapter in the slot before its own"]
)
def test_a_name_by_reported_steps_needs_no_search(name: str) -> None:
    unknown = made_line(5, 5)
    line, seen = Line(reported(unknown, ODD)), []
    for number, here in itertools.product(range(5), range(3)):
        keys = keys_in_steps(OfWhom(unknown, number, here, {}), name, ODD)
        seen.append(OfWhom(line, number, here, {t: frozenset([key]) for t, key in enumerate(keys)}))
    (words, schedule, assumes), *_ = names_in_steps(seen, Scheduler(Clock(0.0)))
    assert schedule == SIMPLE and not assumes
    assert all(
        keys_in_steps(one, words, SIMPLE) == [*map(lambda some: next(iter(some)), one.possible.values())]
        for one in seen
    )


@pytest.mark.parametrize(("every", "is_named"), [(10, True), (4, False)])
def test_a_name_may_have_some_tokens_wrong(every: int, is_named: bool) -> None:
    """A slot may be given away before a step has rows of whoever gets it."""
    line, name = Line(reported(made_line(5, 5), ODD)), "the row before in its step"
    seen, count = list[OfWhom](), itertools.count(1)
    for number, here in itertools.product(range(5), range(3)):
        keys = keys_in_steps(OfWhom(line, number, here, {}), name, SIMPLE)
        possible = {t: frozenset(["nobody" if next(count) % every == 0 else key]) for t, key in enumerate(keys)}
        seen.append(OfWhom(line, number, here, possible))
    words = [words for words, *_ in names_in_steps(seen, Scheduler(Clock(0.0)))]
    assert (name in words) == is_named


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([5], r"expected \(step, row, first, tokens, slot\), got 5"),
        ([(0, 0, 0)], "expected"),
        ([(0, 0, 0, 0)], "no such row, tokens or slot"),
        ([(0, 0, 0, 3, -2)], "no such row, tokens or slot"),
        ([(0, 0, 0, 3, 4096)], "slots are counted from 0 on, and below 4096: this is no slot's number"),
        ([(0, 0, 0, 1), (0, 0, 1, 2)], "stands behind step 0"),
        ([(0, 0, 0, 1), (1, 0, 2, 1)], "no step computes token 1"),
        ([(0, 0, 0, 2)], "they end with token 1, the request with token 2"),
        ([(0, 0, 0, "3")], "whole numbers"),
    ],
)
def test_steps_that_are_none(steps: list, message: str) -> None:
    with pytest.raises(EngineError, match=f"^steps: .*{message}"):
        read_steps(steps, 3)


def test_two_requests_in_one_row() -> None:
    one, other = [Computed(4, 0, 0, 3)], [Computed(4, 2, 0, 1)]
    assert clash([one, other]) == "steps: row 2 of step 4 is of request 0 and of request 1"
    assert not clash([one, [Computed(4, 3, 0, 1)], [Computed(5, 0, 0, 1)]])


def skips_last_row() -> Ops:
    """A launch of one row too few."""

    def lora_delta(
        y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        before = y[-1:].copy()
        NUMPY.lora_delta(y, x, module, adapters, mapping, p)
        y[-1:] = before

    return replace(NUMPY, lora_delta=lora_delta)


def last_rows(work: Path) -> set[tuple[str, int, int, Computed]]:
    """Each last row of a step that is an adapter's, in the answers that are kept there: case, request, token, step."""
    last = set()
    for case, exchanges in asked(EngineDriver(lambda: Ours(skips_last_row), small_testbed(), work)):
        steps = [(one, step) for one in exchanges for step in one.response.steps]
        ends = {
            step.step: max(other.row + other.tokens for _, other in steps if other.step == step.step)
            for _, step in steps
        }
        for one, step in steps:
            if one.adapters and step.row + step.tokens == ends[step.step]:
                last.add((case.name, one.index, step.first + step.tokens - 1, step))
    return last


@pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")
def test_an_engine_that_tells_its_steps_is_held_against_them(tmp_path: Path) -> None:
    cause = cause_of_bug(skips_last_row, tmp_path)
    assert cause is not None and cause.explained == cause.failed and not cause.exceptions
    (change,) = cause.changes
    assert change.what == "its own delta is missing" and change.tokens == "the last row of a step"
    assert not change.is_guess
    assert (
        change.when == "(or for the last row of a step with an adapter)"
    )  # the base's rows stand first, and lose none
    # And of each token that is among its tokens it is known that it was in such a row.
    tokens = ((one, t) for one in cause.tokens for t in range(one.first, one.last + 1))
    assert last_rows(tmp_path) == {
        (one.case, one.request, t, step)
        for one, t in tokens
        for step in one.steps
        if step.first <= t < step.first + step.tokens
    }


@pytest.mark.parametrize(
    ("may_report", "steps", "is_guess", "lines"),
    [
        (True, (), True, [UNREPORTED]),
        (True, (), False, []),
        (True, (Computed(0, 0, 0, 1),), True, []),
        (False, (), True, []),
        (True, None, True, [PARTLY.format(1, 2)]),
        (True, None, False, []),
    ],
)
def test_whoever_could_tell_steps_that_matter_is_told_so(
    may_report: bool, steps: tuple[Computed, ...] | None, is_guess: bool, lines: list[str]
) -> None:
    """steps: None: of one answer of two, beside an error."""
    some = [(Computed(0, 0, 0, 1),), ()] if steps is None else [steps]
    answers = [SimpleNamespace(response=EngineResponse(steps=of_answer)) for of_answer in some]
    answers += [SimpleNamespace(response=EngineResponse(error="no memory"))]
    driver = SimpleNamespace(engine=SimpleNamespace(may_report_steps=may_report), exchanges=lambda *_: answers)
    change = Change("its own delta is missing", "own", "", "the last row of a step", -1.0, is_guess=is_guess)
    cause = CauseReport((change,), 0, 1, 1, 1.0, 1.0)
    played = [SimpleNamespace(case=None, settings=None)]
    assert unreported(cast(Any, SimpleNamespace(driver=driver)), cast(Any, played), cause) == lines
    assert unreported(cast(Any, SimpleNamespace(driver=driver)), cast(Any, played), None) == []


def base_rows_of_the_last() -> Ops:
    """Index -1 of a list of adapters, not none of it."""

    def lora_mapping(per_request: Sequence, lengths: Sequence[int]) -> tuple[Array, Array]:
        return NUMPY.lora_mapping([one or per_request[-1] for one in per_request], lengths)

    return replace(NUMPY, lora_mapping=lora_mapping)


@pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")
def test_what_is_added_to_the_base_alone_is_said_to_be(tmp_path: Path) -> None:
    """Of an adapter's request nothing is known but that the same was not added there."""
    cause = cause_of_bug(base_rows_of_the_last, tmp_path)
    assert cause is not None and cause.explained > 0.8 * cause.failed and not cause.exceptions
    (change,) = cause.changes
    assert change.what.startswith("the delta of ") and "where it is of the base alone" in change.in_full
