"""In which step of an engine a token was computed, and who was in its slots: worked out, and found."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lines import ADAPTERS, made_line

from refimpl.arrays import Array
from refimpl.engines.interface import Computed
from refimpl.oracle.causes.graphs import CUT, OF_LIST
from refimpl.oracle.causes.in_steps import in_steps
from refimpl.oracle.causes.line import Line
from refimpl.oracle.causes.prefix_names import NAMES as PREFIX_NAMES
from refimpl.oracle.causes.prefix_names import by_prefix
from refimpl.oracle.causes.rule import Observed
from refimpl.oracle.causes.schedule import ORDERS, Batch, Schedule, Scheduled, Step
from refimpl.oracle.causes.scheduled_names import OfWhom, keys_in_steps, names_in_steps, table_of
from refimpl.oracle.causes.scheduled_rule import InBatch, Scheduler
from refimpl.oracle.causes.slot_names import TOGETHER, loaded_together
from refimpl.oracle.causes.slots import Slots
from refimpl.oracle.causes.step_regions import regions_in_steps, regions_of_steps
from refimpl.oracle.causes.steps import Caches, steps
from refimpl.oracle.causes.tables import BEFORE, LAST, PLACES, from_tables
from refimpl.oracle.diagnosis.clock import Clock

a_request = st.builds(
    lambda prompt, produced, adapters: Scheduled(prompt + produced, prompt, adapters),
    st.integers(1, 20),
    st.integers(0, 6),
    st.sampled_from(ADAPTERS),
)
batches = st.lists(a_request, min_size=1, max_size=5)
a_schedule = st.builds(
    Schedule,
    chunk=st.sampled_from([None, 1, 4, 7]),
    budget=st.sampled_from([None, 5, 16, 22]),
    counts_decodes=st.booleans(),
    prompts_first=st.booleans(),
    running=st.sampled_from([None, 2, 3]),
    adapters=st.sampled_from([None, 1, 2, 3]),
    overtake=st.booleans(),
    if_room=st.booleans(),
    prompts_ahead=st.booleans(),
    by_end=st.booleans(),
    compacts=st.booleans(),
    evicts=st.booleans(),
    one_step=st.booleans(),
    touches=st.booleans(),
    in_turn=st.booleans(),
    by_slot=st.booleans(),
    to_the_end=st.booleans(),
    by_row=st.booleans(),
    at_end=st.booleans(),
    order=st.sampled_from(list(ORDERS)),
)


def keys_of(requests: Batch, some: set[int]) -> set[str]:
    return {key for i in some for key, _ in requests[i].adapters}


@given(batches, a_schedule)
@settings(deadline=None)
def test_steps_compute_every_token_once_in_order_within_the_limits(requests: Batch, schedule: Schedule) -> None:
    done, begun, came = [0] * len(requests), set[int](), list[int]()
    for step in steps(requests, schedule, Caches.of(schedule)):
        assert step.rows
        counted = [one.length for one in step.rows if schedule.counts_decodes or not one.is_decode]
        assert sum(counted) <= (schedule.budget or math.inf)
        order = [one.is_decode for one in step.rows]
        if schedule.by_slot and schedule.adapters:
            slots = [
                [step.slots.index(key) for key, _ in requests[one.request].adapters if key in step.slots]
                for one in step.rows
            ]
            assert slots == sorted(slots)
        elif schedule.by_row:
            came += [one.request for one in step.rows if one.request not in came]
            places = [came.index(one.request) for one in step.rows]
            assert schedule.compacts or places == sorted(places)
        elif not schedule.in_turn or schedule.prompts_first or schedule.prompts_ahead:
            assert order == sorted(order, reverse=not schedule.prompts_ahead)
        assert not schedule.prompts_first or len(set(order)) == 1
        begun |= {one.request for one in step.rows}
        for one in step.rows:
            request = requests[one.request]
            assert one.first == done[one.request] and 0 < one.length <= (schedule.chunk or request.tokens)
            assert one.is_decode == (one.first >= request.prompt) and (one.length == 1 or not one.is_decode)
            done[one.request] += one.length
            if (
                schedule.adapters
                and len(keys_of(requests, begun)) <= schedule.adapters
                and not (schedule.evicts or schedule.one_step)
            ):
                assert all(key in step.slots for key, _ in request.adapters)
        begun = {i for i in begun if done[i] < requests[i].tokens}
        assert len(begun) <= (schedule.running or math.inf)
        most = math.inf if schedule.evicts or schedule.one_step else schedule.adapters or math.inf
        assert len(keys_of(requests, begun)) <= most or len(begun) == 1
    assert done == [one.tokens for one in requests]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef"), max_size=2)), max_size=20))
def test_a_slot_goes_to_whoever_comes_from_the_one_that_was_not_used_longest(uses: list[tuple[str, set[str]]]) -> None:
    """The definition: all that was ever in each slot, and when it was used last; those in use stay."""
    slots, filled, used_at = Slots(3), list[list[str]]([[], [], []]), [-1, -1, -1]
    for now, (key, in_use) in enumerate(uses):
        in_use = {one for one in in_use if one in slots.keys} | {key}
        here = [n for n in range(3) if filled[n][-1:] == [key]]
        free = [n for n in range(3) if not filled[n] or filled[n][-1] not in in_use]
        if not here and not free:
            continue
        slot = here[0] if here else min(free, key=lambda n: used_at[n])
        assert slots.move_in(key, in_use) == (not here)
        if not here:
            filled[slot].append(key)
        used_at[slot] = now
        assert slots.keys == [some[-1] if some else None for some in filled]
        assert slots.history == [tuple(some) for some in filled]


def test_an_adapter_that_was_used_in_a_later_step_stays() -> None:
    """a begins before b and runs longer: c takes b's slot if steps count, and a's if beginnings do."""
    a, b, c = ((("a", 1.0),), (("b", 1.0),), (("c", 1.0),))
    first, second = [Scheduled(4, 1, a), Scheduled(1, 1, b)], [Scheduled(1, 1, c)]
    for touches, expected in ((False, ("c", "b")), (True, ("a", "c"))):
        line = Line([first, second])
        assert line.steps(1, Schedule(adapters=2, touches=touches))[0].slots == expected


@pytest.mark.parametrize(
    ("order", "begun"),
    [
        ("", [[0, 1], [2, 3]]),
        ("longest", [[1, 3], [0, 2]]),
        ("shortest", [[2, 0], [3, 1]]),
        ("adapters", [[0, 2], [1, 3]]),
        ("base", [[1, 0], [2, 3]]),
    ],
)
def test_requests_begin_in_an_order_and_run_to_their_ends(order: str, begun: list[list[int]]) -> None:
    a, base, b = ADAPTERS[1], ADAPTERS[0], ADAPTERS[2]
    requests = [Scheduled(6, 4, a), Scheduled(11, 9, base), Scheduled(8, 3, a), Scheduled(7, 6, b)]
    in_order = steps(requests, Schedule(running=2, to_the_end=True, order=order))
    assert [[one.request for one in step.rows] for step in in_order if not step.rows[0].is_decode] == begun
    together = [{one.request for one in step.rows} for step in in_order]
    assert not any(some & set(begun[0]) and some & set(begun[1]) for some in together)


def test_requests_take_what_is_left_of_a_step_in_turn() -> None:
    """The second one is past its prompt while the first one is not."""
    requests = [Scheduled(9, 9, ()), Scheduled(3, 2, ())]
    rows = [one.rows for one in steps(requests, Schedule(chunk=3, budget=4, in_turn=True))]
    assert [(one.request, one.first, one.length) for one in rows[0]] == [(0, 0, 3), (1, 0, 1)]
    assert [(one.request, one.first, one.length) for one in rows[2]] == [(0, 6, 3), (1, 2, 1)] and rows[2][1].is_decode


@given(
    st.lists(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=9), min_size=1, max_size=8),
    st.sampled_from([1, 2, 3]),
)
def test_first_tokens_are_not_computed_again(prompts: list[list[int]], block: int) -> None:
    """One batch after another of one request: the longest whole blocks that an earlier one begins with, all but the
    last token."""
    line = Line([[Scheduled(len(prompt), len(prompt), (), tuple(prompt))] for prompt in prompts])
    for number, prompt in enumerate(prompts):
        rows = [one.rows[0] for one in line.steps(number, Schedule(block=block))]
        again = [
            n
            for n in range(block, len(prompt), block)
            if any(earlier[:n] == prompt[:n] for earlier in prompts[:number])
        ]
        cached = max(again, default=0)
        expected = [(0, cached)] * bool(cached) + [(cached, len(prompt) - cached)]
        assert [(one.first, one.length) for one in rows] == expected


def rows_of(requests: Batch, in_order: list[Step]) -> list[tuple[int, int, bool, int]]:
    """The definition: step, request, is it a decode step, and token, of every row."""
    return [
        (s, one.request, one.is_decode, one.first + j)
        for s, step in enumerate(in_order)
        for one in step.rows
        for j in range(one.length)
    ]


@given(batches, a_schedule, st.data())
@settings(deadline=None)
def test_regions_of_steps_beside_a_loop_over_rows(requests: Batch, schedule: Schedule, data: st.DataObject) -> None:
    here = data.draw(st.integers(0, len(requests) - 1))
    in_order = [Step(tuple(data.draw(st.permutations(one.rows)))) for one in steps(requests, schedule)]  # any order
    rows = rows_of(requests, in_order)
    own_names = {key for key, _ in requests[here].adapters}
    expected: dict[str, list[bool]] = {}
    for n, (s, request, decode, _) in enumerate(rows):
        if request != here:
            continue
        in_step = [i for i, row in enumerate(rows) if row[0] == s]
        prompts = [i for i in in_step if not rows[i][2]]
        own = [
            i
            for i in in_step
            if requests[rows[i][1]].adapters == requests[here].adapters
            or own_names & {key for key, _ in requests[rows[i][1]].adapters}
        ]
        adapters = {requests[rows[i][1]].adapters for i in in_step} - {()}
        numbers = {key: number for number, key in enumerate(dict.fromkeys(one.adapters for one in requests)) if key}
        come = list(dict.fromkeys(rows[i][1] for i in in_step))
        in_slots = sorted(come, key=lambda i: (numbers.get(requests[i].adapters, -1), i))
        facts = {
            "steps without prompt tokens": not prompts,
            "the first row of a step": n == in_step[0],
            "the last of its adapter's rows of a step": n == own[-1],
            "rows of a step from number 2 on": in_step.index(n) >= 2,
            "those of its adapter's rows of a step beyond the last whole 4": own.index(n) >= len(own) - len(own) % 4,
            "those of its adapter's rows of a step beyond the last whole 4, of more than 4": len(own) > 4
            and own.index(n) >= len(own) - len(own) % 4,
            "rows of a step of the first 2 requests there": come.index(here) < 2,
            "rows of a step of all requests there but the first request": come.index(here) > 0,
            "rows of a step of the first 2 requests there, in the order of their slots": in_slots.index(here) < 2,
            "the first row of each request in a step": not any(rows[i][1] == here for i in in_step if i < n),
            "all rows of each request in a step but its last": any(rows[i][1] == here for i in in_step if i > n),
            "the last prompt token of a step": n in prompts and n == prompts[-1],
            "steps in which a request begins": any(rows[i][3] == 0 for i in in_step),
            "steps after one in which a request ended": any(
                row[0] == s - 1 and row[3] == requests[row[1]].tokens - 1 for row in rows
            ),
            "rows of a step, which are of two adapters or more": len(adapters) > 1,
            "rows of a step, which are of 2 requests or more": len({rows[i][1] for i in in_step}) > 1,
            "the last token of each part of a prompt": not decode
            and (here, s) not in {row[1::-1] for row in rows[n + 1 :]},
        }
        for words, holds in facts.items():
            expected.setdefault(words, []).append(holds)
    got = {one.words: one.members.tolist() for one in regions_in_steps(requests, here, schedule, in_order)}
    assert len(got) == len(regions_of_steps())
    assert {words: got[words] for words in expected} == expected


def slot_of(requests: Batch, i: int, slots: Sequence[str | None]) -> int:
    """The definition, also where slots are not known and adapters have them as they come."""
    numbers = list(dict.fromkeys(one.adapters for one in requests if one.adapters))
    as_it_comes = numbers.index(requests[i].adapters) if requests[i].adapters else -1
    return requests[i].slot_in(slots) if slots else as_it_comes


@given(st.lists(batches, min_size=1, max_size=3), a_schedule, st.data())
@settings(deadline=None)
def test_names_beside_a_loop_over_rows(some: list[Batch], schedule: Schedule, data: st.DataObject) -> None:
    line, number = Line(list(some)), len(some) - 1
    requests, in_order = some[number], line.steps(number, schedule)
    rows, table = rows_of(requests, in_order), table_of(line, number, schedule)
    called = list(line.codes)
    got = {name: [called[code] for code in codes] for name, codes in zip(table.names, table.codes, strict=True)}
    assert table.owner.tolist() == [row[1] for row in rows]
    for n, (s, request, decode, _) in enumerate(rows):
        in_step = [i for i, row in enumerate(rows) if row[0] == s]
        in_phase = [i for i in in_step if rows[i][2] == decode]
        prompts = [i for i in in_step if not rows[i][2]]
        slots, at = in_order[s].slots, in_phase.index(n)
        of_slot = [i for _, i in sorted((slot_of(requests, rows[i][1], slots), i) for i in in_step)]
        own_slot = requests[request].slot_in(slots)

        def of(i: int) -> str | None:
            return requests[rows[i][1]].called

        expected = {
            "the first row in its step": of(in_step[0]),
            "the row before in its step": of(in_step[in_step.index(n) - 1]),
            "the row before if rows are sorted by adapter, in its step": of(of_slot[of_slot.index(n) - 1]),
            "the first row of each 4 among the rows of its phase in its step": of(in_phase[at // 4 * 4]),
            "the row at its place if prompts come first, in its step": of(
                sorted(in_step, key=lambda i: rows[i][2])[in_step.index(n)]
            ),
            "the row at its place if decode rows come first, in its step": of(
                sorted(in_step, key=lambda i: not rows[i][2])[in_step.index(n)]
            ),
            "the prompt token at its place in its step": of(prompts[at]) if at < len(prompts) else None,
            # Of slots that there are not nothing can be mixed up.
            "the adapter in the last slot": slots[-1] if slots else of(n),
            "the adapter in slot 3": slots[3] if len(slots) > 3 else of(n),
            "the adapter that was in its slot before": of(n)
            if not slots
            else next(iter(in_order[s].history[own_slot][-2::-1]), None)
            if own_slot >= 0
            else None,
        }
        assert {name: got[name][n] for name in expected} == expected


def test_graphs_keep_the_slots_of_the_first_step_of_their_size() -> None:
    """Two batches of two requests, one token of prompt and two produced: what the first decode step had, the others
    have. In the list of decode rows the last entry goes when the first request ends."""
    a, b, c = ((("a", 1.0),), (("b", 1.0),), (("c", 1.0),))
    line = Line([[Scheduled(2, 1, a), Scheduled(3, 1, b)], [Scheduled(3, 1, c), Scheduled(3, 1, b)]])
    schedule = Schedule(adapters=2)

    def of(number: int, name: str) -> list[str | None]:
        table = table_of(line, number, schedule)
        return [list(line.codes)[code] for code in table.codes[table.names.index(name)]]

    whole = "the request at its place in the first decode step of as many requests"
    assert of(0, whole) == ["a", "b", "a", "b", "b"] and of(1, whole) == ["c", "b", "a", "b", "a", "b"]
    since = "the request at its place in the decode step since which as many requests decode"
    assert of(0, since) == ["a", "b", "a", "b", "b"] and of(1, since) == ["c", "b", "c", "b", "c", "b"]
    in_slot = "the adapter in the slot of the request at its place in the first decode step of as many requests"
    assert line.steps(1, schedule)[0].slots == ("c", "b")
    assert of(1, in_slot) == ["c", "b", "c", "b", "c", "b"]
    assert of(0, OF_LIST) == ["a", "b", "a", "b", "a"]


def test_plans_are_those_of_the_first_step_of_their_shape() -> None:
    """Steps of two tokens, of one, of three: what the first of each shape had, the others have."""
    a, b, c = ((("a", 1.0),), (("b", 1.0),), (("c", 1.0),))
    line = Line([[Scheduled(2, 1, a), Scheduled(3, 1, b)], [Scheduled(4, 3, c)], [Scheduled(3, 2, c)]])
    schedule = Schedule(adapters=2)

    def of(number: int, name: str) -> list[str | None]:
        table = table_of(line, number, schedule)
        return [list(line.codes)[code] for code in table.codes[table.names.index(name)]]

    tokens = "the row at its place in the first step of as many tokens"
    assert of(0, tokens) == ["a", "b", "a", "b", "b"]
    assert of(1, tokens) == ["c", "c", "c", "b"]  # three tokens of its own; then one, as the last step before had
    assert of(2, tokens) == ["a", "b", "b"]
    assert of(2, f"{tokens} and requests") == ["c", "c", "b"]  # of two tokens there were two requests before
    assert of(1, f"{tokens}, of its batch") == ["c", "c", "c", "c"]
    assert line.steps(2, schedule)[0].slots == ("c", "b")
    in_slots = "the adapter in the slot of the row at its place in the first step of as many tokens"
    assert of(2, in_slots) == ["c", "b", "b"]


def test_a_table_of_the_running_requests_is_not_written_for_the_base() -> None:
    """Place 1 was b's; b moved to place 0 when a ended. Then the base stands at place 1, and moves to 0 when c ends."""
    a, b, c = ((("a", 1.0),), (("b", 1.0),), (("c", 1.0),))
    line = Line([[Scheduled(1, 1, a), Scheduled(2, 1, b)], [Scheduled(1, 1, c), Scheduled(3, 1, ())]])
    in_slot = f"the adapter in the slot of {LAST}"
    for slots, words in ((3, LAST), (3, in_slot), (2, in_slot)):  # of two slots c has a's, so b is in its own still
        table = table_of(line, 1, Schedule(adapters=slots))
        assert [list(line.codes)[code] for code in table.codes[table.names.index(words)]] == ["c", "b", "b", "b"]
    (alone,) = [of for of in from_tables(Line([[Scheduled(2, 2, ())]]), Schedule())]
    assert alone[LAST].tolist() == [0, 0]


def test_whose_rows_a_cache_gives_that_knows_no_adapters() -> None:
    """Blocks of two tokens. c's first block was the base's first, and its second one a's."""
    a, c, base = ((("a", 1.0),), (("c", 1.0),), ())
    ids = (1, 2), (1, 2, 3, 4, 5), (1, 2, 3, 4, 6)
    found = (Computed(3, 0, 4, 1),)  # four tokens of c lay in the cache, and so two of a
    line = Line(
        [
            [Scheduled(2, 2, base, ids[0], computed=(Computed(0, 0, 0, 2),))],
            [Scheduled(5, 5, a, ids[1], computed=(Computed(1, 0, 2, 3),))],
            [Scheduled(5, 5, c, ids[2], computed=found)],
        ]
    )
    _, second, third = (
        {words: [list(line.codes)[code] for code in of] for words, of in some.items()}
        for some in by_prefix(line, Schedule())
    )
    first, last, first_of_adapters, last_of_adapters, *_ = PREFIX_NAMES
    assert second[first] == second[last] == [None, None, "a", "a", "a"] and second[first_of_adapters] == ["a"] * 5
    assert third[first] == [None, None, "a", "a", "c"] and third[last] == ["a"] * 4 + ["c"]
    assert third[first_of_adapters] == third[last_of_adapters] == ["a"] * 4 + ["c"]
    table = table_of(line, 2, Schedule())
    assert set(PREFIX_NAMES) <= set(table.names)
    members = {
        one.words: one.members.tolist() for one in regions_in_steps(line.batches[2], 0, Schedule(), table.in_order)
    }
    assert members["first tokens that were found in a cache"] == [True] * 4 + [False]
    assert members["steps in which a request begins"] == [False] * 4 + [True]


def test_whose_rows_a_cache_gives_that_knows_slots_alone() -> None:
    """c has b's slot. Of b's two blocks and a's, which are the same tokens, b's are given."""
    a, b, c = ((("a", 1.0),), (("b", 1.0),), (("c", 1.0),))
    ids = (1, 2, 3, 4, 5)
    line = Line(
        [
            [Scheduled(5, 5, a, ids, computed=(Computed(0, 0, 0, 5, 0),))],
            [Scheduled(5, 5, b, ids, computed=(Computed(1, 0, 0, 5, 1),))],
            [Scheduled(5, 5, c, ids, computed=(Computed(2, 0, 4, 1, 1),))],
            [Scheduled(5, 5, c, ids, computed=(Computed(3, 0, 4, 1, 1),))],
        ]
    )
    *_, third, fourth = (
        {words: [list(line.codes)[code] for code in of] for words, of in some.items()}
        for some in by_prefix(line, Schedule())
    )
    *_, first, last = PREFIX_NAMES
    assert third[first] == third[last] == ["b"] * 4 + ["c"]
    assert fourth[first] == ["b"] * 4 + ["c"] and fourth[last] == ["c"] * 5


def test_adapters_that_came_in_one_step_are_taken_for_one_of_them() -> None:
    """a and b come at once; then c alone, in a's slot; then a again, alone."""
    a, b, c = ((("a", 1.0),), (("b", 1.0),), (("c", 1.0),))
    line = Line(
        [
            [Scheduled(2, 2, a), Scheduled(1, 1, b), Scheduled(1, 1, ())],
            [Scheduled(1, 1, c)],
            [Scheduled(1, 1, b)],
            [Scheduled(1, 1, a)],
        ]
    )
    of_batches = [
        {words: [list(line.codes)[code] for code in of] for words, of in some.items()}
        for some in loaded_together(line, Schedule(adapters=2))
    ]
    first, last = (TOGETHER.format(which) for which in ("first", "last"))
    assert [some[first] for some in of_batches] == [["a", "a", "a", None], ["c"], ["a"], ["a"]]
    assert [some[last] for some in of_batches] == [["b", "b", "b", None], ["c"], ["b"], ["a"]]


def test_the_rows_of_the_step_before() -> None:
    """a's prompt of two tokens and b's of one, then both decode, then b alone; c's batch begins behind that."""
    a, b, c = ((("a", 1.0),), (("b", 1.0),), (("c", 1.0),))
    line = Line([[Scheduled(3, 2, a), Scheduled(3, 1, b)], [Scheduled(4, 3, c)]])
    first, second = (
        {words: [list(line.codes)[code] for code in of] for words, of in some.items()}
        for some in from_tables(line, Schedule(adapters=3))
    )
    rows, decodes = (BEFORE.format(*PLACES[where]) for where in ("row", "decode row"))
    assert first[rows] == ["a", "a", "b", "a", "a", "a"]  # three rows of prompts, then two, then one
    assert first[decodes] == ["a", "a", "b", "a", "b", "a"]
    assert second[rows] == ["b", "c", "c", "c"] and second[decodes] == ["c", "c", "c", "c"]
    assert second[f"the adapter in the slot of {rows}"] == ["b", "c", "c", "c"]


def test_rows_in_the_order_in_which_requests_began() -> None:
    """Rows stand slot by slot: b has the first slot, a came first in this batch."""
    a, b = ((("a", 1.0),), (("b", 1.0),))
    line = Line([[Scheduled(1, 1, b)], [Scheduled(2, 1, a), Scheduled(2, 1, b)]])
    table = table_of(line, 1, Schedule(adapters=2, by_slot=True))
    named = {name: [list(line.codes)[code] for code in of] for name, of in zip(table.names, table.codes, strict=True)}
    words = "the row at its place if requests stand in the order in which they began, "
    assert named[words + "in its step"] == named[words + "among the rows of its phase in its step"] == ["a", "b"] * 2
    assert [[one.request for one in step.rows] for step in table.in_order] == [[1, 0], [1, 0]]


def test_a_list_that_is_cut_gives_the_first_entries_to_those_that_are_left() -> None:
    a, b, c = ((("a", 1.0),), (("b", 1.0),), (("c", 1.0),))
    line = Line([[Scheduled(1, 1, a), Scheduled(3, 1, b), Scheduled(4, 1, c)]])
    table = table_of(line, 0, Schedule())
    named = {name: [list(line.codes)[code] for code in of] for name, of in zip(table.names, table.codes, strict=True)}
    assert named[CUT] == ["a", "b", "c", "a", "b", "a", "b", "a"]  # three prompts, then b and c twice, then c


def test_segments_as_long_as_their_neighbours() -> None:
    a, b = ((("a", 1.0),), (("b", 1.0),))
    line = Line([[Scheduled(1, 1, b), Scheduled(3, 3, a), Scheduled(2, 2, ())]])
    table = table_of(line, 0, Schedule())
    named = {name: [list(line.codes)[code] for code in of] for name, of in zip(table.names, table.codes, strict=True)}
    words = "the request that a row is of if each has as many in a step as the one {} it"
    assert named[words.format("behind")] == ["b", "b", "b", "a", "a", None]  # lengths 3, 2, 1
    assert named[words.format("before")] == ["b", "b", "a", None, None, None]  # lengths 2, 1, 3
    # In the order of slots, the base first: its two rows, the one of b, the three of a, of lengths 1, 3, 2.
    assert named[words.format("behind") + ", in the order of slots"] == ["b", "b", "a", "a", None, "b"]


def observed(present: Array) -> Observed:
    return Observed({}, [], present)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (Schedule(8, 40), "the last of its adapter's prompt tokens of a step"),
        (Schedule(7, 22, adapters=2, overtake=True), "the step in which its adapter moves into a slot"),
        (Schedule(12), "the last token of each part of a prompt but the last"),
        (Schedule(budget=24, prompts_first=True), "rows of a step from number 8 on"),
        (
            Schedule(16, 48, adapters=3, overtake=True, by_row=True, compacts=True),
            "those of its adapter's rows of a step beyond the last whole 4",
        ),
    ],
    ids=lambda one: str(one)[:24],
)
def test_the_schedule_of_an_engine_is_found(schedule: Schedule, words: str) -> None:
    """Tokens that a hidden schedule tells apart have one short rule, although nobody says what the schedule is."""
    line = made_line(3, 6)
    requests, hidden = [], []
    for number, here in itertools.product(range(6), range(3)):
        batch = line.batches[number]
        region = [
            one for one in regions_in_steps(batch, here, schedule, line.steps(number, schedule)) if one.words == words
        ]
        requests.append(InBatch(observed(region[0].members.astype(int)), line, number, here))
        hidden.append(in_steps(batch, here, line.steps(number, schedule)))
    assert any((one.observed.present == 1).any() for one in requests)
    scheduler = Scheduler(Clock(math.inf))
    rule = scheduler.rule(requests)
    assert rule.wrong == 0 and rule.tokens and scheduler.schedules
    again = Scheduler(Clock(0.0), list(scheduler.schedules)).rule(requests)  # an engine has one schedule
    assert again.wrong == 0 and again.words == rule.words


def test_whose_adapter_it_is_is_found_with_the_schedule() -> None:
    """Each row takes the adapter in slot 1 of two, which nobody can know without all batches before."""
    line, schedule, name = made_line(5, 5), Schedule(8, adapters=2, overtake=True), "the adapter in slot 1"
    seen = []
    for number, here in itertools.product(range(5), range(3)):
        one = OfWhom(line, number, here, {})
        keys = keys_in_steps(one, name, schedule)
        seen.append(dataclasses.replace(one, possible={t: frozenset([key]) for t, key in enumerate(keys)}))
    (words, found, assumes), *_ = names_in_steps(seen, Scheduler(Clock(math.inf)))
    assert words in (name, "the adapter in the last slot") and found.adapters == 2 and "2 adapters" in assumes
    assert all(keys_in_steps(one, words, found) == keys_in_steps(one, name, schedule) for one in seen)


def test_no_name_is_given_where_none_fits() -> None:
    """Adapters at random are nobody's."""
    line, rng = made_line(7, 5), np.random.default_rng(0)
    seen = [
        OfWhom(line, number, here, {t: frozenset([str(rng.choice(list("abc")))]) for t in range(6)})
        for number, here in itertools.product(range(5), range(2))
        if line.batches[number][here].tokens >= 6
    ]
    assert names_in_steps(seen, Scheduler(Clock(math.inf))) == []


@pytest.mark.parametrize(
    ("page", "schedule"), [("README.md", Schedule(8, adapters=3)), ("docs/check.md", Schedule(8, 40, adapters=3))]
)
def test_what_the_pages_quote_is_what_is_said(page: str, schedule: Schedule) -> None:
    text = " ".join((Path(__file__).parents[2] / page).read_text("utf-8").split())
    assert schedule.words in text
    words = "the step in which its adapter moves into a slot"
    assert words in dict(regions_of_steps())
    assert page != "README.md" or f'"for {words} {schedule.words}"' in text
