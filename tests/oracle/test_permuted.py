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
from refimpl.oracle.cases.case import Exchange, teacher_forced
from refimpl.oracle.cases.testbed import settings as engine_settings
from refimpl.oracle.causes.mix_up import EXACT
from refimpl.oracle.causes.permuted import FIRST_USE, IN_TURN, LAST, TWICE, WAYS, Permutation, logits_of, permuted
from refimpl.oracle.causes.relations import label
from refimpl.oracle.engine_driver import EngineDriver
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import Errors, measure
from refimpl.plans import LoraMapping

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

LIMIT = 3.0


def answered(tmp_path, seed: int, new: int | None = None) -> tuple[list[Exchange], list[Errors | None]]:
    """A batch of plain adapters as a right engine answers it. new: how many tokens each request produces."""
    testbed = small_testbed()
    driver = EngineDriver(lambda: Ours(lambda: NUMPY), testbed, tmp_path)
    case = draw_batch(testbed, CAPABILITIES, np.random.default_rng([seed, 8]), f"batch {seed}")
    if new is not None:
        (run,) = case.runs
        run = replace(run, requests=tuple(replace(one, max_new_tokens=new) for one in run.requests))
        case = replace(case, steps=(run,))
    exchanges = driver.exchanges(case, engine_settings(testbed))
    kept = [one for one in exchanges if not any(testbed.adapters[key].use_dora for key, _ in one.adapters)]
    raws = measure(case, kept, testbed, ensemble("float32"))[1]
    driver.close()
    return kept, raws


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
    testbed = small_testbed()
    order = {key: i for i, key in enumerate(testbed.paths)}
    for found, expected in zip(logits_of(exchanges, testbed, way, order), row_by_row(exchanges, way), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_the_way_is_found_again(tmp_path, seed: int) -> None:
    """With decode steps; and of those that do the same in this batch all."""
    exchanges, raws = answered(tmp_path, seed)
    testbed = small_testbed()
    order = {key: i for i, key in enumerate(testbed.paths)}
    rows = {way: logits_of(exchanges, testbed, way, order) for way in WAYS}
    for way in WAYS[:5]:
        wrong = [
            None if raw is None else replace(raw, error=raw.view.of(of[raw.rows, : raw.vocab]) - raw.exact)
            for raw, of in zip(raws, rows[way], strict=True)
        ]
        found = [one for one, _ in permuted(exchanges, wrong, testbed, LIMIT)]
        assert way in found
        for one in found:
            for ours, theirs in zip(rows[one], rows[way], strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_answers_that_are_right_are_those_of_no_permutation_that_does_something(tmp_path) -> None:
    exchanges, raws = answered(tmp_path, 1)
    testbed = small_testbed()
    order = {key: i for i, key in enumerate(testbed.paths)}
    right = [raw.logits for raw in raws if raw is not None]
    for way, _ in permuted(exchanges, raws, testbed, LIMIT):
        rows = logits_of(exchanges, testbed, way, order)
        for ours, raw, theirs in zip(rows, raws, right, strict=True):
            assert raw is not None
            np.testing.assert_allclose(ours[raw.rows, : raw.vocab], theirs, atol=1e-4)
