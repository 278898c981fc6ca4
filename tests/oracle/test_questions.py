"""Questions as Hypothesis draws them: a right engine answers them, a wrong one fails at a small one."""

import dataclasses
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from support.testbed import CONFIG, small_testbed
from threadpoolctl import threadpool_info, threadpool_limits

from pytest_loracle import loracle_questions
from refimpl.adapter import pattern_value
from refimpl.config import module_name
from refimpl.engines.interface import EngineRequest
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.case_order import batch
from refimpl.oracle.cases.batches import LONG
from refimpl.oracle.cases.case import Case, Run
from refimpl.oracle.cases.variety import random_adapters
from refimpl.oracle.check import check
from refimpl.oracle.questions import Questions
from refimpl.oracle.reports.result import CampaignSettings
from refimpl.synthetic.models import random_model


def test_patterns_have_paths_of_layers_of_which_the_first_that_matches_counts() -> None:
    """Half of the adapters with a pattern: an engine that takes the last one, or no paths, has another alpha."""
    rng, without_paths, last = np.random.default_rng(0), 0, 0
    base = random_model(CONFIG, rng, "float32")
    for seed in range(12):
        for adapter in random_adapters(base, np.random.default_rng([seed, 4]), CAPABILITIES, 5):
            pattern = adapter.config.alpha_pattern
            if not any("." in key for key in pattern):
                continue
            names = [module_name(module) for module in adapter.lora]
            first = [pattern_value(pattern, name, 1.0) for name in names]
            last += first != [pattern_value(dict(reversed(list(pattern.items()))), name, 1.0) for name in names]
            plain = {key: value for key, value in pattern.items() if "." not in key}
            without_paths += first != [pattern_value(plain, name, 1.0) for name in names]
    assert last >= 8 and without_paths >= 8


FEW = hypothesis.settings(max_examples=4, deadline=None, database=None, derandomize=True)
MORE = hypothesis.settings(FEW, max_examples=60)


@pytest.mark.parametrize("seed", range(4))
def test_of_eight_batches_one_is_a_pair_one_is_long_and_one_is_of_sums(seed: int) -> None:
    """A pair: one adapter and the base, which produce several tokens side by side. Sums: of two and of three adapters
    that can be summed, beside two of these alone; an engine without sums gets a batch like the others."""
    testbed = small_testbed()
    lengths = [len(one.prompt_ids) for one in batch(testbed, CAPABILITIES, seed, 5).runs[0].requests]
    assert max(lengths) > LONG >= sorted(lengths)[-2] and len(lengths) == 3
    pair, sums = (batch(testbed, CAPABILITIES, seed, i).runs[0].requests for i in (3, 7))
    assert len({one.adapter for one in pair}) == 2 and None in {one.adapter for one in pair}
    assert all(one.max_new_tokens >= 3 and not one.adapter_weights for one in pair)
    summed = [{key for key, _ in one.adapter_weights} for one in sums if one.adapter_weights]
    alone = {one.adapter for one in sums if not one.adapter_weights}
    assert {len(keys) for keys in summed} == {2, 3} and min(summed, key=len) | {None} == alone
    assert all(testbed.adapters[key].can_be_summed for keys in summed for key in keys)
    without = dataclasses.replace(CAPABILITIES, features=CAPABILITIES.features - {"sums"})
    assert not any(one.adapter_weights for one in batch(testbed, without, seed, 7).runs[0].requests)


def test_a_right_engine_answers_batches_and_sequences() -> None:
    asked = loracle_questions("numpy", model=str(small_testbed().folder), seed=1)
    seen: list[Case] = []

    @FEW
    @hypothesis.given(asked.batches(), asked.sequences())
    def right(batch: Case, sequence: Case) -> None:
        asked.check(batch)
        asked.check(sequence)
        seen.extend((batch, sequence))

    right()
    assert {case.stateless for case in seen} == {True, False}
    work = Path(asked.folder.name)
    assert work.is_dir()
    asked.folder.cleanup()


def test_a_wrong_engine_fails_at_one_request_of_one_token(tmp_path: Path) -> None:
    asked = Questions(lambda: Ours(all_mutants()["adapters_ignored"].make), small_testbed(), tmp_path)
    case = hypothesis.find(asked.batches(), lambda case: bool(asked.wrong(case)), settings=MORE)
    (request,) = case.runs[0].requests
    assert request.adapters and len(request.prompt_ids) == request.max_new_tokens == 1
    with pytest.raises(AssertionError, match=r"one request of .*, one token: it is wrong \(.* x noise at place 0\)"):
        asked.check(case)


def test_a_small_base_has_one_blas_thread_and_gives_the_others_back(tmp_path: Path) -> None:
    seen: list[int] = []

    class Counting(Ours):
        def run(self, requests, forced=None):
            seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
            return super().run(requests, forced)

    with threadpool_limits(2, "blas"):
        asked = Questions(Counting, small_testbed(), tmp_path)
        check(Counting, str(small_testbed().folder), {}, CampaignSettings(1, 0, below=False), tmp_path / "work")
        assert not asked.wrong(Case("one", (Run((EngineRequest((1, 2), None),)),)))
        after = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert set(seen) == {1} and set(after) == {2}
