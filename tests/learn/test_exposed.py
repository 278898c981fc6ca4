"""The score of chapter 12: what is counted can be exposed, an engine without a bug passes, and nonsense is refused."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.errors import LoracleError
from refimpl.learn import exposed
from refimpl.oracle.bugs import all_mutants
from refimpl.request import Request

SOLUTION = Path(__file__).parents[2] / "teacher" / "solutions" / "ch12_requests.py"


def solution() -> Any:
    spec = importlib.util.spec_from_file_location("ch12_solution", SOLUTION)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.requests


def test_all_that_is_counted_can_be_exposed_and_the_engine_without_a_bug_passes() -> None:
    score = exposed.score(solution())
    assert score.unexposed == [] and set(score.exposed) == set(exposed.mutants())
    assert {all_mutants()[name].family for name in score.exposed} == {"A", "B", "C"} and len(score.exposed) >= 51
    assert score.clean_error < 1e-12 and score.tokens <= exposed.MOST_TOKENS


def test_requests_without_an_adapter_expose_nothing_of_adapters() -> None:
    score = exposed.score(lambda adapter: [[Request([1, 2, 3])]])
    assert score.exposed == ["first_row_for_last"]


def test_a_small_error_is_exposed_and_rounding_is_not() -> None:
    score = exposed.score(lambda adapter: [[Request([1, 2, 3], adapter(r=3))]])
    assert "scale_times[1.01]" in score.exposed and "scale_is_one" in score.exposed
    right = [np.ones((1, 4))]
    assert exposed.largest_error([np.ones((1, 4)) * (1 + 1e-12)], right) < exposed.TOLERANCE
    assert not exposed.largest_error([np.full((1, 4), np.nan)], right) <= exposed.TOLERANCE


def test_each_call_makes_another_adapter_and_the_same_calls_make_the_same() -> None:
    maker, again = exposed.AdapterMaker(), exposed.AdapterMaker()
    first, second = maker("name"), maker("name")
    module = (0, "q_proj")
    assert not np.array_equal(first.lora[module].A, second.lora[module].A)
    assert np.array_equal(first.lora[module].A, again("other").lora[module].A)


@pytest.mark.parametrize(
    "batches, message",
    [
        ([], "list of batches"),
        ([Request([1])], "list of batches"),
        ([[Request([1])], []], "list of batches"),
        ([["pirate"]], "list of batches"),
        ([[Request([1] * 61)]], "too many"),
        ([[Request([64])]], "vocabulary"),
        ([[Request([1], temperature=0.5)]], "temperature"),
        ([[Request([1], stop_ids=[3])]], "stop_ids"),
        ([[Request([1], max_new_tokens=0)]], "max_new_tokens"),
    ],
)
def test_what_is_no_list_of_batches_is_refused(batches: Any, message: str) -> None:
    with pytest.raises(LoracleError, match=message):
        exposed.score(lambda adapter: batches)


def test_a_module_that_there_is_not_is_named() -> None:
    with pytest.raises(LoracleError, match="qproj is no module"):
        exposed.AdapterMaker()("first", target_modules=("qproj",))


def test_a_key_that_there_is_not_is_named() -> None:
    with pytest.raises(LoracleError, match="alpha is no key"):
        exposed.AdapterMaker()("first", alpha=3)
