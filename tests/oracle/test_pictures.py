"""What is drawn of a failure: the case that shows the most, the bug where it is, and every module's own error."""

from dataclasses import replace

import numpy as np
from support.testbed import small_testbed

from refimpl.engines.interface import EngineRequest, EngineResponse
from refimpl.engines.ours import Ours
from refimpl.model import logits
from refimpl.ops import NUMPY
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.cases.case import Case, Exchange, Run, forced_tokens, play, prepare, teacher_forced
from refimpl.oracle.cases.testbed import Testbed, settings
from refimpl.oracle.diagnosis.localise import first_off, intermediates
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import Sample, measure
from refimpl.oracle.noise.verdict import Thresholds, learn_thresholds
from refimpl.oracle.reports.pictures import POSITIONS, REQUESTS, TOKENS, picture
from refimpl.tracing import trace

BUG = all_mutants()["scale_is_one"]


def played(testbed: Testbed, requests: list[EngineRequest], bug: bool = True) -> tuple[Sample, Thresholds]:
    engine = Ours(BUG.make) if bug else Ours()
    engine.start(settings(testbed))
    prepare(engine, testbed)
    case = Case("one", (Run(tuple(requests)),))
    exchanges = play(engine, case, testbed)
    measured, raws = measure(case, exchanges, testbed, ensemble(testbed.dtype))
    return Sample(case, exchanges, raws, settings(testbed)), learn_thresholds(measured)


def requests_of(testbed: Testbed, length: int = 6) -> list[EngineRequest]:
    names = [None, *testbed.paths]
    return [EngineRequest(tuple(n % 40 for n in range(1 + i, length + i)), name, 2) for i, name in enumerate(names)]


def test_of_several_cases_the_one_that_shows_the_most_is_drawn_and_the_bug_beside_it() -> None:
    testbed = small_testbed()
    wrong, thresholds = played(testbed, requests_of(testbed))
    right, _ = played(testbed, requests_of(testbed), bug=False)
    right = replace(right, case=replace(right.case, name="another"))
    image = picture([right, wrong], testbed, thresholds, BUG)
    assert image is not None and image.case == "one" and image.mutant == "scale_is_one"
    assert [line.adapter for line in image.lines] == [None, *testbed.paths]
    for line in image.lines:
        assert line.bug is not None and line.residual is not None
        assert line.engine.shape == line.bug.shape == line.residual.shape
        assert (line.residual < 2 * thresholds.ratio).all()  # the numbers with the bug round elsewhere than honest ones
    assert not image.lines[0].bug.any()  # the base has no scale
    close = image.close_up
    assert close is not None and close.bug is not None and close.residual is not None
    far = image.lines[close.line].engine
    assert np.allclose(np.sqrt(np.mean(close.engine**2, axis=1)), far), (
        "all tokens are drawn: the rms is that of the row"
    )
    assert far.max() > thresholds.ratio and close.places == list(range(len(far))) and len(close.tokens) == 40


def test_a_bug_that_is_confined_to_one_adapter_is_drawn_there_only() -> None:
    testbed = small_testbed()
    sample, thresholds = played(testbed, requests_of(testbed))
    everywhere = picture([sample], testbed, thresholds, BUG)
    assert everywhere is not None
    hit = [line.adapter for line in everywhere.lines if line.bug is not None and line.bug.any()]
    assert len(hit) >= 2
    confined = picture([sample], testbed, thresholds, BUG, only=str(hit[0]))
    assert confined is not None
    assert [line.adapter for line in confined.lines if line.bug is not None and line.bug.any()] == [hit[0]]


def test_without_a_name_for_it_the_engine_is_drawn_alone_and_large_cases_are_thinned() -> None:
    testbed = small_testbed()
    sample, thresholds = played(testbed, requests_of(testbed, 60) * 4)
    image = picture([sample], testbed, thresholds, None)
    assert image is not None and image.mutant == "" and len(image.lines) == REQUESTS
    assert all(line.bug is None and line.residual is None for line in image.lines)
    close = image.close_up
    assert close is not None and close.bug is None
    assert (
        len(close.places) == POSITIONS
        and (close.places[0], close.places[-1]) == (0, 59)
        and len(close.tokens) <= TOKENS
    )
    assert picture([], testbed, thresholds, None) is None


def test_what_an_engine_does_not_show_is_no_number() -> None:
    testbed = small_testbed()
    sample, _ = played(testbed, requests_of(testbed))
    shown = []
    for exchange in sample.exchanges:
        assert exchange.response.logits is not None
        rows = exchange.response.logits - np.log(np.exp(exchange.response.logits).sum(axis=1, keepdims=True))
        top = [{int(t): float(row[t]) for t in np.argsort(-row)[:5]} for row in rows]
        shown.append(replace(exchange, response=EngineResponse(exchange.response.token_ids, 0, top=top)))
    assert forced_tokens(shown) == forced_tokens(sample.exchanges)
    measured, raws = measure(sample.case, shown, testbed, ensemble(testbed.dtype))
    image = picture([replace(sample, exchanges=shown, raws=raws)], testbed, learn_thresholds(measured), BUG)
    assert image is not None and image.close_up is not None and image.close_up.bug is not None
    is_shown = np.isfinite(image.close_up.engine)
    assert (is_shown == np.isfinite(image.close_up.bug)).all()
    assert (is_shown.sum(axis=1) <= 5).all() and is_shown.any(axis=1).all() and is_shown.any(axis=0).all()


def traced(testbed: Testbed, exchange: Exchange) -> dict[str, np.ndarray]:
    """What an engine with hooks would show: the output of every module, over the prompt."""
    with trace("layers.*") as values:
        logits(testbed.model, [teacher_forced(replace(exchange, response=EngineResponse()), testbed.adapters)], NUMPY)
    names = [name.removesuffix(".base") for name in values if name.endswith(".base")]
    outputs = {f"{name}.output": values[f"{name}.base"] + values[f"{name}.lora"] for name in names}
    return {name: np.array(values[name]) for name in values if name.endswith(".output")} | outputs


def test_every_module_has_its_own_ratio_and_the_first_that_is_off_is_found() -> None:
    testbed = small_testbed()
    sample, thresholds = played(testbed, requests_of(testbed), bug=False)
    exchange = sample.exchanges[2]
    honest = traced(testbed, exchange)
    locations = intermediates(exchange, EngineResponse(trace=honest), testbed, ensemble(testbed.dtype))
    order = [(location.layer, location.module) for location in locations]
    assert len(order) == len(set(order)) == len(honest) and order == sorted(order, key=lambda module: module[0] or 0)
    assert {location.how for location in locations} == {"intermediates"} and first_off(locations, thresholds) is None
    spoilt = {**honest, "layers.1.up_proj.output": honest["layers.1.up_proj.output"] * 1.01}
    after = intermediates(exchange, EngineResponse(trace=spoilt), testbed, ensemble(testbed.dtype))
    first = first_off(after, thresholds)
    assert first is not None and (first.layer, first.module) == (1, "up_proj") and first.ratio > 100
    assert [location for location in after if location != first] == [
        location for location in locations if (location.layer, location.module) != (1, "up_proj")
    ]
    nothing = {**honest, "layers.0.k_proj.output": honest["layers.0.k_proj.output"] * np.nan}
    first = first_off(
        intermediates(exchange, EngineResponse(trace=nothing), testbed, ensemble(testbed.dtype)), thresholds
    )
    assert first is not None and (first.layer, first.module) == (0, "k_proj")
