"""Bugs in one place, and with other numbers: what a place leaves alone is right, and what it holds is the bug's own."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.testbed import small_testbed

from refimpl import NUMPY, Ops
from refimpl.engines.interface import EngineRequest
from refimpl.engines.ours import Ours
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.bugs.parameters import parameter_mutants
from refimpl.oracle.bugs.registry import all_bugs, find_bug
from refimpl.oracle.bugs.scopes import Scope, can_be_scoped, scoped, scopes_of, small_scopes_of
from refimpl.oracle.bugs.steps import rescaling
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.cases.case import Case, Run, play, prepare
from refimpl.oracle.cases.testbed import settings
from refimpl.oracle.diagnosis.candidate import Candidate
from refimpl.oracle.diagnosis.diagnose import Graded, _explains_all, is_near
from refimpl.oracle.diagnosis.projection import Projection
from refimpl.oracle.reports.result import CampaignSettings

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")
PROMPTS = ((3, 1, 4, 1, 5), (9, 2, 6), (5,), (3, 5, 8, 9))
NOWHERE, ANYWHERE = Scope("nowhere", lambda module: False), Scope("anywhere")


def answers(make: Callable[[], Ops]) -> list[np.ndarray]:
    """Of a ragged batch with a base row, two decode steps, in float64."""
    testbed = small_testbed()
    engine = Ours(make, None, testbed.exact, {testbed.paths[key]: adapter for key, adapter in testbed.wide.items()})
    engine.start(settings(testbed))
    prepare(engine, testbed)
    asks = (
        EngineRequest(PROMPTS[0], "made-0", 3),
        EngineRequest(PROMPTS[1], None, 3),
        EngineRequest(PROMPTS[2], "made-1", 3),
        EngineRequest(PROMPTS[3], "made-2", 3),
    )
    forced = {0: [(1, 2, 3)] * len(asks)}
    with np.errstate(all="ignore"):
        return [exchange.response.logits for exchange in play(engine, Case("one", (Run(asks),)), testbed, forced)]


def same(before: list[np.ndarray], after: list[np.ndarray]) -> bool:
    return all(np.allclose(x, y, rtol=0, atol=1e-9, equal_nan=True) for x, y in zip(before, after, strict=True))


CONFINED = (
    "scale_times[1.05]",
    "rslora_ignored",
    "k_and_v_deltas_swapped",
    "adapter_of_the_next_request",
    "base_counted_twice",
)


@pytest.mark.parametrize("name", CONFINED)
def test_a_bug_that_is_anywhere_is_the_bug_and_one_that_is_nowhere_is_none(name: str) -> None:
    bug = all_bugs(small_testbed())[name]
    assert can_be_scoped(bug)
    wrong, right = answers(bug.make), answers(lambda: NUMPY)
    assert not same(wrong, right)
    assert same(answers(scoped(bug, ANYWHERE).make), wrong)
    assert same(answers(scoped(bug, NOWHERE).make), right)


def test_no_adapter_in_one_module_is_that_module_left_out() -> None:
    testbed = small_testbed()
    for module in ("q_proj", "down_proj"):
        scoped_answers = answers(find_bug(f"adapters_ignored @ {module}", testbed).make)
        assert same(scoped_answers, answers(find_bug(f"not_applied_to[{module}]", testbed).make))
    assert same(
        answers(find_bug("adapters_ignored @ layer 0", testbed).make),
        answers(find_bug("first_layer_missed", testbed).make),
    )


def test_decode_steps_and_prompts_are_the_two_parts_of_a_request() -> None:
    testbed, right = small_testbed(), answers(lambda: NUMPY)
    decode = answers(find_bug("adapters_ignored @ decode", testbed).make)
    assert same(decode, answers(find_bug("adapter_in_prompts_only", testbed).make))
    for prompt, logits, expected in zip(PROMPTS, decode, right, strict=True):
        assert np.allclose(logits[: len(prompt)], expected[: len(prompt)])
    assert not same(decode, right)
    assert not same(answers(find_bug("adapters_ignored @ prompts", testbed).make), right)


def test_a_wrong_position_is_in_no_place() -> None:
    bugs = all_bugs(small_testbed())
    assert not can_be_scoped(bugs["decode_too_far[2]"])
    assert not can_be_scoped(bugs["window_ignored"])
    assert can_be_scoped(bugs["base_after[5]"])


def test_every_value_answers_and_has_a_name_of_its_own() -> None:
    testbed, right = small_testbed(), answers(lambda: NUMPY)
    values = parameter_mutants(testbed)
    assert not values.keys() & all_bugs(testbed).keys() - values.keys()
    shown = [name for name, bug in values.items() if not same(answers(bug.make), right)]
    for name in ("rank_cut[5]", "shard_of_B[2,4]", "base_after[5]", "exchanged[made-0,made-1]", "decode_too_far[2]"):
        assert name in shown
    assert len({p.name for p in (*scopes_of(testbed.model.config), *small_scopes_of(testbed.model.config))}) > 40


def test_in_order_of_arrival_the_neighbour_is_the_one_who_came_next() -> None:
    """made-0, base, made-1, made-2 came in this order: base gets made-1, and made-2 the first's."""
    testbed = small_testbed()
    neighbours = answers(find_bug("adapter_of_the_next_request by arrival", testbed).make)
    rotated = answers(find_bug("adapter_of_a_request_further_on[-3] by arrival", testbed).make)
    assert same(neighbours, rotated)
    assert not same(neighbours, answers(find_bug("adapter_of_the_next_request", testbed).make))


def wrong_in_one_place() -> Ops:
    return rescaling(lambda module, lora, adapter: 1.11 if (module[1], adapter.name) == ("up_proj", "made-2") else 1.0)


PLAN = CampaignSettings(cases=4, sequences=0, below=False)


def test_a_factor_for_one_adapter_in_one_module_is_found(tmp_path: Path) -> None:
    result = Campaign(lambda: Ours(wrong_in_one_place), small_testbed(), PLAN, tmp_path).run()
    cause = result.explanation.cause
    assert result.verdict == "fail" and cause is not None and cause.explained == cause.failed
    what = "its own delta is 1.11 times as large as it should be, at up_proj"
    assert cause.sentence == f"{what}, {cause.where}"
    # Other adapters of differing ranks are right. Of the two that failed no condition is learnt: one is asked again.
    assert cause.where == "where its adapter is made-2" and cause.afterwards


def test_where_no_cause_fits_every_bug_is_tried_in_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.oracle.explain.cause_of", lambda *arguments: None)
    result = Campaign(lambda: Ours(wrong_in_one_place), small_testbed(), PLAN, tmp_path).run()
    finding = result.explanation.findings[0]
    assert finding.explains and finding.name == "scale_times[made-2: 1.11] @ up_proj"


def test_the_nearest_bug_is_about_as_large_as_the_error() -> None:
    """In one unit: a bug that fits at 35 times its size, or whose own noise swallows the error, is not near."""
    mutant = all_mutants()["rslora_ignored"]

    def candidate(coefficient: float, residual: float) -> Candidate:
        return Candidate(mutant, [], Projection(coefficient, 0.1, 10.0, 10 * coefficient), residual)

    assert is_near(candidate(0.9, 40.0), 100.0)
    assert not is_near(candidate(35.0, 40.0), 100.0)
    assert not is_near(candidate(0.9, 60.0), 100.0)


@pytest.mark.parametrize(
    "error, residual, c, named", [(8e5, 8e5, 6.2, False), (8e5, 3e5, 1.1, False), (8e5, 4e4, 1.0, True)]
)
def test_what_rounds_is_named_for_no_error_that_it_leaves(error: float, residual: float, c: float, named: bool) -> None:
    """In units of its own noise it leaves little of anything: m02 of benchmarks/independent got such a name."""
    projection = SimpleNamespace(coefficient=c, sigma=1e-3, score=1e3)
    one = Graded(SimpleNamespace(projection=projection, residual=residual), 1.5)
    thresholds = SimpleNamespace(whole_level=0.0, fail_score=8.0, whole_spread=0.15)
    assert _explains_all(one, thresholds, 7.5, error) is named
