"""Questions as Hypothesis draws them: a right engine answers them, a wrong one fails at a small one."""

from pathlib import Path

import hypothesis
import pytest
from support.testbed import small_testbed
from threadpoolctl import threadpool_info, threadpool_limits

from pytest_loracle import loracle_questions
from refimpl.engines.interface import EngineRequest
from refimpl.engines.ours import Ours
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.cases.case import Case, Run
from refimpl.oracle.check import check
from refimpl.oracle.questions import Questions
from refimpl.oracle.reports.result import CampaignSettings

FEW = hypothesis.settings(max_examples=4, deadline=None, database=None, derandomize=True)
MORE = hypothesis.settings(FEW, max_examples=60)


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
