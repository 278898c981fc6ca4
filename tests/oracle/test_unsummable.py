"""A user's adapter that can be neither weighted nor summed (DoRA, a bias or rows of its own) in a campaign.

Its cases do not sum it, and the symptoms of a failure do not ask for a weight of it."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.build import as_dora
from support.testbed import small_testbed

from refimpl import NUMPY, Ops
from refimpl.adapter import Adapter, TokenRows
from refimpl.config import EMBED
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.cases.batches import draw_batch
from refimpl.oracle.cases.case import Case, Exchange, play, prepare
from refimpl.oracle.cases.testbed import Testbed, settings
from refimpl.oracle.diagnosis.symptoms import symptoms_of
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import Sample, measure
from refimpl.oracle.noise.verdict import judge, learn_thresholds
from refimpl.weights import Model


def dora(adapter: Adapter, model: Model) -> Adapter:
    """Return the adapter as a DoRA."""
    stretched = as_dora(adapter, model, 1)
    lora = {
        module: dataclasses.replace(tensors, magnitude=tensors.magnitude.astype(np.float32))
        for module, tensors in stretched.lora.items()
        if tensors.magnitude is not None
    }
    return dataclasses.replace(stretched, lora=lora)


def with_token_rows(adapter: Adapter, model: Model) -> Adapter:
    """Return the adapter with rows of its own for two tokens."""
    rows = np.random.default_rng(0).standard_normal((2, model.config.hidden_size)).astype(np.float32)
    config = dataclasses.replace(adapter.config, trainable_token_indices={"embed_tokens": (3, 39)})
    return dataclasses.replace(adapter, config=config, tokens={EMBED: TokenRows(np.array([3, 39], np.int32), rows)})


@functools.cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def _played(testbed: Testbed, case: Case, make: Callable[[], Ops]) -> tuple[list[Exchange], list, list]:
    engine = Ours(make)
    engine.start(settings(testbed))
    prepare(engine, testbed)
    exchanges = play(engine, case, testbed)
    return exchanges, *measure(case, exchanges, testbed, ensemble("float32"))


@pytest.mark.parametrize("kind", [dora, with_token_rows])
def test_its_failures_are_described_without_weighing_it(kind: Callable[[Adapter, Model], Adapter]) -> None:
    small = small_testbed()
    plain = next(iter(small.adapters.values()))
    adapter = kind(plain, small.model)
    testbed = Testbed.of(Path(_root().name) / adapter.name / str(adapter.use_dora), small.model, [adapter])
    assert [one.can_be_summed for one in testbed.adapters.values()] == [False]
    case = draw_batch(testbed, CAPABILITIES, np.random.default_rng(1), "batch")
    assert not any(request.adapter_weights for run in case.runs for request in run.requests)
    honest, (exchanges, ratios, raws) = (
        _played(testbed, case, make) for make in (lambda: NUMPY, all_mutants()["scale_times[1.01]"].make)
    )
    thresholds = learn_thresholds(honest[1])
    verdicts = [judge(one, thresholds) for one in ratios]
    assert "fail" in {verdict.verdict for verdict in verdicts}
    lines = symptoms_of(Sample(case, exchanges, raws, settings(testbed)), verdicts, ratios, testbed, thresholds)
    assert not any("as large as it should be" in line for line in lines)
