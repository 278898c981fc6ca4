"""The steps that are worked out for an engine, and those that it tells, beside those that it makes."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.testbed import small_testbed

from refimpl import NUMPY
from refimpl.arrays import Array
from refimpl.engines.ours import BLOCK_SIZE, Observed, Ours
from refimpl.oracle.case_order import cases_of
from refimpl.oracle.causes.line import Lines
from refimpl.oracle.causes.schedule import Schedule
from refimpl.oracle.engine_driver import EngineDriver
from refimpl.oracle.reports.result import CampaignSettings

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")


def test_the_steps_of_our_own_engine_are_those_of_one_schedule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Batches and sequences with slots, chunks, arrivals and a prefix cache, as it really served them: every row of
    every step. Where there is too little room for keys and values, which drops blocks, they are not worked out."""
    served: list[list[list[tuple[int, int, int]]]] = []
    rows_in_order = Observed._rows_in_order

    def noted(self: Observed, scheduled: list) -> Array:
        served[-1].append([(state.id, state.computed, n) for state, n in scheduled])
        return rows_in_order(self, scheduled)

    class Noting(Ours):
        def run(self, requests, forced=None):
            served.append([])
            return super().run(requests, forced)

    monkeypatch.setattr(Observed, "_rows_in_order", noted)
    testbed = small_testbed()
    driver = EngineDriver(lambda: Noting(lambda: NUMPY), testbed, tmp_path)
    lines, told_lines = Lines(is_new=True), Lines(is_new=True)
    ours = Schedule(
        as_started=True, at_load=True, by_slot=True, touches=True, in_turn=True, if_room=True, block=BLOCK_SIZE
    )
    compared = 0
    for case, settings in cases_of(
        testbed, Ours.capabilities, CampaignSettings(cases=4, sequences=6), lambda: False, []
    ):
        served.clear()
        exchanges = driver.run(case, settings)
        untold = [replace(one, response=replace(one.response, steps=())) for one in exchanges]
        line, first = lines.add(case, settings, untold, testbed)
        told, _ = told_lines.add(case, settings, exchanges, testbed)
        assert told.is_reported and not line.is_reported
        for number, (run, real) in enumerate(zip(case.runs, served, strict=True)):
            if settings.kv_tokens is not None:
                continue
            as_they_came = sorted(range(len(run.requests)), key=lambda i: run.requests[i].arrival_step)
            ids = dict(zip(as_they_came, sorted({request for step in real for request, _, _ in step}), strict=True))
            steps_of = line.steps(first + number, ours)
            rows = [[(ids[one.request], one.first, one.length) for one in step.rows] for step in steps_of]
            begins = {request: first for step in reversed(real) for request, first, _ in step}
            cached = [[(request, 0, n)] for request, n in begins.items() if n]
            assert [step for step in rows if step not in cached] == real
            assert all(step in rows for step in cached)
            told_rows = [
                [(ids[of.request], of.first, of.length) for of in one.rows] for one in told.steps(first + number, ours)
            ]
            assert [step for step in told_rows if step not in cached] == real
            assert all(step in told_rows for step in cached)
            compared += 1
    assert compared > 20
