"""Tables that an engine keeps from step to step, against the definition: a dict of places, row after row."""

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from support.lines import ADAPTERS, made_line, reported

from refimpl.engines.interface import Computed
from refimpl.oracle.causes.candidate_schedules import SIMPLE
from refimpl.oracle.causes.line import Line
from refimpl.oracle.causes.schedule import Schedule, Scheduled, Step
from refimpl.oracle.causes.tables import BEFORE, EVERY, FEW, LAST, MOST, NONE, PLACES, WRITTEN, from_tables

SCHEDULE = Schedule(5, 19, adapters=2, evicts=True, running=3, block=4)


def places_of(where: str, step: Step, running: list[int | None]) -> list[int | None]:
    """The place of each row of a step, None: none."""
    places, decodes = list[int | None](), 0
    for number, one in enumerate(step.rows):
        for _ in range(one.length):
            of_row = {
                "row": len(places),
                "decode row": decodes if one.is_decode else None,
                "request": number,
                "running": running.index(one.request),
            }
            places.append(of_row[where])
            decodes += one.is_decode
    return places


def by_definition(line: Line, schedule: Schedule, where: str, when: str) -> Iterator[list[list[int]]]:
    """For each batch what each row gets: of the table, of the slot that stands there, and the same with the base where
    nothing stands."""
    table = dict[int, tuple[int, int]]()  # place -> what its adapter is called, and its slot
    size = 0
    for n, requests in enumerate(line.batches):
        results: list[list[int]] = [[], [], [], []]
        running, done, begun = list[int](), [0] * len(requests), set[int]()
        for step in line.steps(n, schedule):
            running += [one.request for one in step.rows if one.request not in running]
            places = places_of(where, step, list(running))
            in_slots = [line.codes[key] for key in step.slots]
            rows = [one for one in step.rows for _ in range(one.length)]
            own = [
                (line.codes[requests[one.request].called], requests[one.request].slot_in(step.slots)) for one in rows
            ]
            begins = [one.request not in begun for one in rows]
            writes = {
                "after it was read": lambda row: True,
                "rows of adapters": lambda row: own[row][0] > 0,  # noqa: B023
                "rows of prompts": lambda row: not rows[row].is_decode,  # noqa: B023
                "rows of requests that begin": lambda row: begins[row],  # noqa: B023
                "steps in which a request begins": lambda row: any(begins),  # noqa: B023
                "steps without prompts": lambda row: all(one.is_decode for one in rows),  # noqa: B023
                "steps with prompts": lambda row: not all(one.is_decode for one in rows),  # noqa: B023
                "steps of another size": lambda row: len(rows) != size,  # noqa: B023
            }[WRITTEN[when]]
            new = {place: own[row] for row, place in enumerate(places) if place is not None and writes(row)}
            if when != BEFORE and not step.is_cached:
                table |= new
            for row, place in enumerate(places):
                stands = table.get(place, None) if place is not None and not step.is_cached else None
                code, slot = stands or own[row]
                in_slot = in_slots[slot] if slot >= 0 else code
                rest = (code, in_slot) if stands or step.is_cached else (0, 0)
                for of, one in zip(results, (code, in_slot, *rest), strict=True):
                    of.append(one)
            if when == BEFORE and not step.is_cached:
                table = new
            for one in step.rows:
                done[one.request] += one.length
            at = 0
            while at < len(running):  # the last one takes the place of one that ends
                i = running[at]
                if done[i] < requests[i].tokens:
                    at += 1
                    continue
                last = running.pop()
                if at < len(running):
                    running[at] = last
                    if where == "running" and len(running) in table:
                        table[at] = table[len(running)]
                    elif where == "running":
                        table.pop(at, None)
            if not step.is_cached:
                begun |= {one.request for one in step.rows}
                size = len(rows)
        yield results


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from(EVERY))
@settings(deadline=None, max_examples=60)
def test_tables_are_what_a_dict_of_places_is(seed: int, count: int, kind: tuple[str, str]) -> None:
    where, when = kind
    unknown = made_line(seed, count)
    line = Line(reported(unknown, SCHEDULE))
    words = when.format(*PLACES[where])
    names = [words, f"the adapter in the slot of {words}"]
    expected = list(by_definition(line, SIMPLE, where, when))
    for of_batch, results in zip(from_tables(line, SIMPLE), expected, strict=True):
        assert [of_batch[name].tolist() for name in names] == results[:2]
        if where != "running":
            assert [of_batch[name + NONE].tolist() for name in names] == results[2:]
    if (where, when) in FEW:  # of these steps that are worked out have a name as well
        for of_batch, results in zip(
            from_tables(unknown, SCHEDULE), by_definition(unknown, SCHEDULE, where, when), strict=True
        ):
            assert [of_batch[name].tolist() for name in names] == results[:2]


def test_what_stood_there_before_a_batch_that_is_too_long_is_forgotten() -> None:
    a, b = ADAPTERS[1:3]
    name = "the last row with an adapter that stood at its place"
    for length, expected in ((MOST, "b"), (MOST + 1, None)):
        steps = [(a, 1), (b, length), ((), 1)]
        batches = [[Scheduled(n, n, who, computed=(Computed(i, 0, 0, n, 0),))] for i, (who, n) in enumerate(steps)]
        line = Line(batches)
        *_, last = from_tables(line, SIMPLE)
        assert list(line.codes)[last[name][0]] == expected


def test_slots_that_nobody_tells_hold_whoever_stands_there() -> None:
    a, b = ADAPTERS[1:3]
    batches = [[Scheduled(1, 1, who, computed=(Computed(i, 0, 0, 1),))] for i, who in enumerate((a, b))]
    _, second = from_tables(Line(batches), SIMPLE)
    assert second["the adapter in the slot of the row at its place in the step before"].tolist() == [1]


def test_an_engine_whose_steps_are_worked_out_has_few_names() -> None:
    """To find its schedule they are worked out hundreds of times."""
    (first,) = from_tables(made_line(1, 1), SCHEDULE)
    assert len(first) == 2 * len(FEW) and LAST in first
