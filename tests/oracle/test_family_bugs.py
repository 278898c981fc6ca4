"""The bugs of other families and other kinds of adapters: each fails in float32, on a small base of a family that can
show it, and gives numbers for any other family's batch as well."""

from collections.abc import Callable

import numpy as np
import pytest
import zoo
from support.family_testbed import drawn_batch, family_testbed, one_after_another, responses

from refimpl import NUMPY, Ops
from refimpl.oracle.bugs import NEEDS_OF_FAMILIES, Mutant, all_mutants
from refimpl.oracle.bugs.preconditions import of_testbed
from refimpl.oracle.cases.case import Case
from refimpl.oracle.cases.testbed import Testbed
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import measure
from refimpl.oracle.noise.verdict import judge, learn_thresholds

CASES = 100  # in which a bug must have shown
MEMBERS = ensemble("float32")

# A family that has what a bug needs, and the kind of its adapters.
SHOWN_BY = {
    "experts": ("qwen2_moe", "plain"),
    "experts LoRA": ("qwen2_moe", "plain"),
    "experts rsLoRA": ("mixtral", "rslora"),
    "router LoRA": ("glm4_moe", "plain"),
    "shared expert LoRA": ("glm4_moe", "plain"),
    "gated shared expert LoRA": ("qwen2_moe", "plain"),
    "multiplied embedding LoRA": ("granite", "plain"),
    "capped logits LoRA": ("gemma2", "plain"),
    "norms of q and k": ("qwen3", "plain"),
    "sinks": ("gpt_oss", "plain"),
    "sliding and full layers": ("olmo3", "plain"),
    "longrope": ("phi3", "plain"),
    "DoRA": ("llama", "dora"),
    "DoRA on a bias": ("qwen2", "dora"),
    "aLoRA": ("llama", "alora"),
    "aLoRA in sequence": ("llama", "alora"),
    "lm_head LoRA on a prompt": ("llama", "plain"),
}
MUTANTS = [mutant for mutant in all_mutants().values() if mutant.needs in SHOWN_BY]


def fails(testbed: Testbed, case: Case, make: Callable[[], Ops]) -> bool:
    """Does the oracle fail the engine on this case, beside the honest runs?"""
    with np.errstate(all="ignore"):
        measured, _ = measure(case, responses(testbed, case, make), testbed, MEMBERS)
    thresholds = learn_thresholds(measured)
    return any(judge(ratios, thresholds).verdict == "fail" for ratios in measured)


def cases_for(needs: str, testbed: Testbed) -> list[Callable[[], Case]]:
    draw = one_after_another if needs == "aLoRA in sequence" else drawn_batch
    return [lambda seed=seed: draw(testbed, seed) for seed in range(CASES)]


def test_a_family_is_named_for_every_need() -> None:
    latent = {"kv_b_proj LoRA", "kv_b_proj LoRA in steps"}  # test_latent_bugs.py
    assert {*SHOWN_BY, *latent} == {*NEEDS_OF_FAMILIES}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_is_found_within_100_cases(mutant: Mutant) -> None:
    testbed = family_testbed(*SHOWN_BY[mutant.needs])
    assert of_testbed(testbed)[mutant.needs]
    assert any(fails(testbed, draw(), mutant.make) for draw in cases_for(mutant.needs, testbed))


@pytest.mark.parametrize("needs", {bed: needs for needs, bed in SHOWN_BY.items()}.values())  # each testbed once
def test_an_engine_without_the_bug_passes(needs: str) -> None:
    testbed = family_testbed(*SHOWN_BY[needs])
    assert not any(fails(testbed, draw(), lambda: NUMPY) for draw in cases_for(needs, testbed)[:2])


@pytest.mark.parametrize("needs", SHOWN_BY)
def test_every_one_of_them_answers_here_as_well(needs: str) -> None:
    """With numbers for every token, whatever it does: what another family lacks, a bug of it does not look for."""
    case, expected = zoo.case(needs), zoo.truth(needs)
    for mutant in MUTANTS:
        assert [row.shape for row in case.responses(mutant.make())] == [row.shape for row in expected], mutant.name
