"""Deltas that are put back in the wrong order: against a definition row by row, and found again in answers."""

from dataclasses import replace

import numpy as np
import pytest
from support.testbed import small_testbed

from refimpl import NUMPY
from refimpl.adapter_slots import AdapterSlots
from refimpl.arrays import Array, Precision, to_host
from refimpl.config import Module
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.lora import added_by
from refimpl.model import forward, whole_prompts
from refimpl.oracle.cases.batches import draw_batch
from refimpl.oracle.cases.case import Exchange, teacher_forced, truth, with_requests
from refimpl.oracle.cases.testbed import settings as engine_settings
from refimpl.oracle.causes.line import Line, batches_of
from refimpl.oracle.causes.mix_up import EXACT
from refimpl.oracle.causes.permuted import (
    FIRST_USE,
    IN_TURN,
    LAST,
    SLOT_BY_SLOT,
    TWICE,
    WAYS,
    Permutation,
    computed,
    permuted,
)
from refimpl.oracle.causes.relations import label
from refimpl.oracle.causes.schedule import Schedule, Step
from refimpl.oracle.engine_driver import EngineDriver
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import Errors, measure
from refimpl.plans import LoraMapping

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

LIMIT = 3.0


def answered(
    tmp_path, seed: int, new: int | None = None, alike: bool = False
) -> tuple[list[Exchange], list[Errors | None]]:
    """A batch of plain adapters as a right engine answers it. new: how many tokens each request produces. alike: is all
    of it asked of one adapter?"""
    testbed = small_testbed()
    driver = EngineDriver(lambda: Ours(lambda: NUMPY), testbed, tmp_path)
    case = draw_batch(testbed, CAPABILITIES, np.random.default_rng([seed, 8]), f"batch {seed}")
    if new is not None:
        (run,) = case.runs
        run = replace(run, requests=tuple(replace(one, max_new_tokens=new) for one in run.requests))
        case = replace(case, steps=(run,))
    if alike:
        plain = next(key for key, adapter in testbed.adapters.items() if not adapter.use_dora and not adapter.replaced)
        steps = with_requests(case.steps, lambda one: replace(one, adapter=plain, adapter_weights=()))
        case = replace(case, steps=steps)
    exchanges = driver.exchanges(case, engine_settings(testbed))
    kept = [one for one in exchanges if not any(testbed.adapters[key].use_dora for key, _ in one.adapters)]
    raws = measure(case, kept, testbed, ensemble("float32"))[1]
    driver.close()
    return kept, raws


def steps_of(exchanges: list[Exchange], schedule: Schedule) -> list[Step]:
    """Return the steps of a batch that is the first of its engine."""
    untold = [replace(one, response=replace(one.response, steps=())) for one in exchanges]
    return Line(batches_of(untold)).steps(0, schedule)


def logits_of(exchanges: list[Exchange], way: Permutation, in_order: list[Step]) -> list[Array]:
    """Return the rows of each request."""
    rows: list[list[Array]] = [[] for _ in exchanges]
    for i, first, logits in computed(exchanges, small_testbed(), way, in_order):
        assert first == sum(map(len, rows[i]))
        rows[i].append(logits)
    return [np.concatenate(some) for some in rows]


def row_by_row(exchanges: list[Exchange], way: Permutation) -> list[Array]:
    """The definition: one step, that of the prompts. Row i gets what row source[i] should."""
    testbed = small_testbed()
    model, requests = testbed.exact, [teacher_forced(one, testbed.wide) for one in exchanges]
    p = model.precision(EXACT)
    batch, cache, adapters = whole_prompts(model, requests, NUMPY, p, every_row=True)
    labels = [label(one.adapters) for one, request in zip(exchanges, requests, strict=True) for _ in request.prompt_ids]
    used = list(dict.fromkeys(labels))
    codes = [len(used) if way.base == LAST and one is None else used.index(one) for one in labels]
    order = sorted(range(len(labels)), key=lambda row: (codes[row], row))
    source = [order[order[i]] if way.wrong == TWICE else order[i] for i in range(len(order))]

    def lora_delta(y: Array, x: Array, module: Module, slots: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        deltas = added_by(NUMPY.lora_delta, y, x, module, slots, mapping, p)
        for i in range(len(y)):
            y[i] += deltas[source[i]]

    rows = to_host(forward(model, batch, cache, adapters.slots, replace(NUMPY, lora_delta=lora_delta), p))
    return np.split(rows, np.cumsum([len(one.prompt_ids) for one in requests])[:-1])


@pytest.mark.parametrize("way", [way for way in WAYS if way.by == FIRST_USE and way.base in (LAST, IN_TURN)], ids=str)
def test_a_step_of_prompts_is_as_it_is_row_by_row(tmp_path, way: Permutation) -> None:
    exchanges, _ = answered(tmp_path, 1, new=1)
    rows = logits_of(exchanges, way, steps_of(exchanges, Schedule()))
    for one, expected in zip(rows, row_by_row(exchanges, way), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-10)


SEVERAL = [Schedule(), Schedule(budget=16), Schedule(budget=16, adapters=2)]


@pytest.mark.parametrize("schedule", SEVERAL, ids=lambda one: one.words)
def test_of_one_adapter_nothing_is_out_of_order_whatever_the_steps_are(tmp_path, schedule: Schedule) -> None:
    exchanges, _ = answered(tmp_path, 2, alike=True)
    exact, in_order = truth(exchanges, small_testbed()), steps_of(exchanges, schedule)
    assert schedule.budget is None or len(in_order) > len(steps_of(exchanges, Schedule()))
    for way in (one for one in WAYS if one.by not in SLOT_BY_SLOT or schedule.adapters):
        for rows, expected in zip(logits_of(exchanges, way, in_order), exact, strict=True):
            np.testing.assert_allclose(rows, expected, atol=1e-10)


def test_decode_steps_may_be_right(tmp_path) -> None:
    exchanges, _ = answered(tmp_path, 1, new=3)
    in_order, way = steps_of(exchanges, Schedule()), Permutation(FIRST_USE, LAST, TWICE)
    everywhere = {(i, first): rows for i, first, rows in computed(exchanges, small_testbed(), way, in_order)}
    some = computed(exchanges, small_testbed(), replace(way, prompts=True), in_order)
    same = {(i, first): np.allclose(rows, everywhere[i, first], atol=1e-9) for i, first, rows in some}
    assert all(is_same for (_, first), is_same in same.items() if first == 0) and not all(same.values())


@pytest.mark.parametrize(("seed", "schedule"), list(enumerate(SEVERAL)))
def test_the_way_is_found_again(tmp_path, seed: int, schedule: Schedule) -> None:
    """With decode steps; and of those that do the same in this batch all."""
    exchanges, raws = answered(tmp_path, seed)
    in_order = steps_of(exchanges, schedule)
    some = [WAYS[0], next(one for one in WAYS if one.by == FIRST_USE and one.prompts)]
    some += [one for one in WAYS if one.by in SLOT_BY_SLOT and schedule.adapters][::3]
    for way in some:
        rows = logits_of(exchanges, way, in_order)
        wrong = [
            None if raw is None else replace(raw, error=raw.view.of(of[raw.rows, : raw.vocab]) - raw.exact)
            for raw, of in zip(raws, rows, strict=True)
        ]
        good = [one for one, _ in permuted(exchanges, wrong, small_testbed(), LIMIT, in_order)]
        assert way in good
        for one in good:
            for ours, theirs in zip(logits_of(exchanges, one, in_order), rows, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_answers_that_are_right_are_those_of_no_permutation_that_does_something(tmp_path) -> None:
    exchanges, raws = answered(tmp_path, 1)
    right, in_order = [raw.logits for raw in raws if raw is not None], steps_of(exchanges, Schedule())
    for way, _ in permuted(exchanges, raws, small_testbed(), LIMIT, in_order):
        for ours, raw, theirs in zip(logits_of(exchanges, way, in_order), raws, right, strict=True):
            assert raw is not None
            np.testing.assert_allclose(ours[raw.rows, : raw.vocab], theirs, atol=1e-4)
