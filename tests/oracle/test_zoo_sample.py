"""The table of who would have caught which bug (benchmarks/results/zoo.json) is about this zoo. Of a sample of its rows
it is measured again: the case that found a bug still does."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import recipes, standard
from refimpl.ops import NUMPY
from refimpl.oracle.bugs import llama_mutants
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import measure
from refimpl.oracle.noise.verdict import Thresholds

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TABLE = json.loads((RESULTS / "zoo.json").read_text("utf-8"))
PAGE = (RESULTS / "zoo.md").read_text("utf-8")
MUTANTS = llama_mutants()
AGAIN = "python -m benchmarks.zoo measures it again"

# Every so many of those that one case finds, over all types.
BY_A_CASE = [
    (name, dtype, found)
    for name, row in TABLE["mutants"].items()
    for dtype, found in row["ours"].items()
    if found and found["by"] != "below the noise"
]
SAMPLE = BY_A_CASE[7 :: len(BY_A_CASE) // 8]


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@functools.cache
def setting(dtype: str, seed: int) -> standard.Setting:
    return standard.setting(dtype, seed, Path(folder().name))


def test_it_lists_exactly_the_zoo() -> None:
    assert list(TABLE["mutants"]) == list(MUTANTS), AGAIN
    assert list(TABLE["recipes"]) == list(recipes.RECIPES), AGAIN
    for name, row in TABLE["mutants"].items():
        assert (row["class"], row["needs"]) == (MUTANTS[name].family, MUTANTS[name].needs), AGAIN
        assert f"| {row['class']} | {name} | " in PAGE, AGAIN


def test_clean_tables_pass_everything() -> None:
    for table in TABLE["clean"].values():
        assert set(table["recipes"].values()) == {False}
        assert not any(table["ours"].values())
    assert set(TABLE["clean"]) == {"numpy", "reference"}


def test_every_mutant_is_found_within_100_cases_or_there_is_a_reason() -> None:
    for name, row in TABLE["mutants"].items():
        for dtype, found in row["ours"].items():
            assert found["after"] <= 100 if found else f"| {name} | {dtype} | " in PAGE
        assert row["ours"]["float32"], name
    assert "a hole in the campaign" not in PAGE


@pytest.mark.parametrize(("name", "dtype", "found"), SAMPLE, ids=[f"{name} {dtype}" for name, dtype, _ in SAMPLE])
def test_the_case_that_found_it_still_does(name: str, dtype: str, found: dict) -> None:
    s, known = setting(dtype, found["stage"]), Thresholds(**TABLE["limits"][dtype][found["stage"]])
    case, way = next(pair for pair in s.cases if pair[0].name == found["case"])

    def asked(make: standard.MakeOps) -> standard.Found | None:
        with np.errstate(all="ignore"):
            exchanges = standard.asking(s, make).driver.run(case, way)
        return standard.failure(case, measure(case, exchanges, s.testbed, ensemble(dtype))[0], known)

    again = asked(MUTANTS[name].make)
    assert again is not None and again.by == found["by"], AGAIN
    assert asked(lambda: NUMPY) is None


@pytest.mark.parametrize("recipe", [recipes.trtllm_op, recipes.sglang_logprobs])
def test_a_recipe_says_what_it_said(recipe: recipes.Recipe) -> None:
    [title] = [title for title, r in recipes.RECIPES.items() if r is recipe]
    for name in ("adapters_ignored", "rslora_ignored", "last_input_lost"):
        assert recipe(MUTANTS[name].make) == TABLE["mutants"][name]["recipes"][title], f"{name}: {AGAIN}"
    # In float16 two texts part where two tokens are as good as equal, which is a matter of the CPU; after that, what
    # SGLang's recipe compares is not the same text.
    assert recipe is recipes.sglang_logprobs or not recipe(lambda: NUMPY)
