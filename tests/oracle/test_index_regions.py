"""Rows that a wrong count leaves out, in steps that are told: by hand, and against loops over each row."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lines import ADAPTERS, made_line, reported

from refimpl.engines.interface import Computed
from refimpl.oracle.causes.candidate_schedules import SIMPLE
from refimpl.oracle.causes.index_regions import TILES, regions_by_index
from refimpl.oracle.causes.line import Line
from refimpl.oracle.causes.rule import Observed
from refimpl.oracle.causes.schedule import Schedule, Scheduled
from refimpl.oracle.causes.scheduled_rule import InBatch, Scheduler
from refimpl.oracle.diagnosis.clock import Clock

SCHEDULE = Schedule(6, 24, adapters=2, evicts=True, by_slot=True)


@given(st.integers(0, 10**6), st.sampled_from(TILES), st.sampled_from(["request", "adapter"]))
@settings(deadline=None, max_examples=30)
def test_tiles_beyond_a_grid_are_those_that_a_loop_leaves_out(seed: int, n: int, whose: str) -> None:
    """The grid has room for all prompt tokens of a step, but each segment begins a tile."""
    unknown = made_line(seed, 2)
    line = Line(reported(unknown, SCHEDULE))
    words = f"prompt tokens of a step in tiles of {n} of one {whose} each, beyond as many tiles as all rows fill"
    for number, batch in enumerate(line.batches):
        left_out = [np.zeros(one.tokens, bool) for one in batch]
        for step in line.steps(number, SIMPLE):
            prompts = [one for one in step.rows if not one.is_decode]
            rows = [(one.request, one.first + i) for one in prompts for i in range(one.length)]
            room, tile = math.ceil(len(rows) / n), 0
            of_row = [i if whose == "request" else batch[i].slot_in(step.slots) for i, _ in rows]
            for segment in sorted({key for key in of_row if key >= 0}):
                some = [row for row, key in zip(rows, of_row, strict=True) if key == segment]
                for start in range(0, len(some), n):
                    for i, token in some[start : start + n]:
                        left_out[i][token] = tile >= room
                    tile += 1
        for here, expected in enumerate(left_out):
            (region,) = (one for one in regions_by_index(line, number, here) if one.words == words)
            assert region.members.tolist() == expected.tolist()


def test_counts_of_the_step_before_of_requests_and_of_lengths() -> None:
    """A step of two rows; then one of three of the first request and two of the second."""
    a, b = ADAPTERS[1:3]
    line = Line(
        [
            [Scheduled(2, 2, a, computed=(Computed(0, 0, 0, 2, 0),))],
            [
                Scheduled(3, 3, a, computed=(Computed(1, 0, 0, 3, 0),)),
                Scheduled(2, 2, b, computed=(Computed(1, 3, 0, 2, 1),)),
            ],
        ]
    )
    expected = {
        "beyond as many as the step before had": [[0, 0, 1], [1, 1]],
        "beyond as many as it has requests": [[0, 0, 1], [1, 1]],
        "beyond as many as its longest request has": [[0, 0, 0], [1, 1]],
        "beyond as many of each request as the first one has": [[0, 0, 0], [0, 0]],
        "beyond as many of each request as the shortest has": [[0, 0, 1], [0, 0]],
    }
    for here in range(2):
        members = {one.words: one.members.astype(int).tolist() for one in regions_by_index(line, 1, here)}
        for phase in ("row", "prompt token"):
            assert {words: members[f"{phase}s of a step {words}"] for words in expected} == {
                words: of[here] for words, of in expected.items()
            }
        assert members["decode rows of a step beyond as many as it has requests"] == [0] * (3 - here)
    first = {one.words: one.members.tolist() for one in regions_by_index(line, 0, 0)}
    assert first["the last row of a step with an adapter, in the order of slots"] == [False, True]
    assert not any(first["rows of a step beyond as many as the step before had"])  # there was none


def test_the_ends_of_what_has_an_adapter_in_both_orders() -> None:
    """b stands before a, in the second slot; the base behind them."""
    a, b = ADAPTERS[1:3]
    requests = [(b, 2, 1), (a, 2, 0), ((), 1, -1)]
    rows = [0, 2, 4]
    line = Line(
        [
            [
                Scheduled(n, n, who, computed=(Computed(0, row, 0, n, slot),))
                for (who, n, slot), row in zip(requests, rows, strict=True)
            ]
        ]
    )
    expected = {
        "the first row of a step with an adapter": [[1, 0], [0, 0], [0]],
        "the last row of a step with an adapter": [[0, 0], [0, 1], [0]],
        "the first row of a step with an adapter, in the order of slots": [[0, 0], [1, 0], [0]],
        "the last row of a step with an adapter, in the order of slots": [[0, 1], [0, 0], [0]],
    }
    for here in range(3):
        members = {one.words: one.members.astype(int).tolist() for one in regions_by_index(line, 0, here)}
        assert {words: members[words] for words in expected} == {words: of[here] for words, of in expected.items()}


@pytest.mark.parametrize("is_told", [True, False])
def test_a_grid_that_is_too_small_is_said_of_steps_that_are_told(is_told: bool) -> None:
    unknown = made_line(4, 6)
    line = Line(reported(unknown, SCHEDULE))
    words = "rows of a step in tiles of 4 of one adapter each, beyond as many tiles as all rows fill"
    requests = []
    for number, batch in enumerate(line.batches):
        for here in range(len(batch)):
            (region,) = (one for one in regions_by_index(line, number, here) if one.words == words)
            one = Observed({}, [], region.members.astype(int))
            requests.append(InBatch(one, line if is_told else unknown, number, here))
    assert sum((one.observed.present == 1).any() for one in requests) >= 3
    rule = Scheduler(Clock(0.0)).rule(requests)
    assert (rule.tokens == (words,) and not rule.wrong) == is_told
