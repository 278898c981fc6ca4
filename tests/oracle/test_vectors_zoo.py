"""The table of which vector kills which mutant (benchmarks/results/vectors.json) is about this set and this zoo."""

import json
from pathlib import Path

import pytest

from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.vectors.bugs import BUGS
from refimpl.oracle.vectors.read import read_set
from refimpl.oracle.vectors.systems import LoadedModels, OpsUnderTest
from refimpl.oracle.vectors.verify import judge

ROOT = Path(__file__).parents[2]
VECTORS = read_set(ROOT / "tests" / "vectors" / "v1")
TABLE = json.loads((ROOT / "benchmarks" / "results" / "vectors.json").read_text("utf-8"))
PAGE = (ROOT / "benchmarks" / "results" / "vectors.md").read_text("utf-8")
AGAIN = "python benchmarks/vectors.py measures it again"

# Bugs of engines that do not check, or of kernels: no mutant has them, but the C++ program and the kernels' tests do.
WITHOUT_A_MUTANT = {"range", "overflow", "poison", "length", "none"}


def test_it_is_about_this_set_and_this_zoo() -> None:
    assert TABLE["vectors"] == [v.id for v in VECTORS], AGAIN
    missing = set(all_mutants()) - set(TABLE["mutants"])
    assert not missing, f"{sorted(missing)} are not in the table: {AGAIN}"


def test_every_mutant_is_killed_and_nothing_clean_is() -> None:
    clean = {(name, dtype): by for name, table in TABLE["clean"].items() for dtype, by in table.items()}
    assert len(clean) == 6 and not any(clean.values())
    assert [name for name, m in TABLE["mutants"].items() if not m["killed_by"]["float32"]] == []
    assert "a hole in the set" not in PAGE
    for name, m in TABLE["mutants"].items():  # what survives in a half type stands on the page, with its reason
        for dtype, by in m["killed_by"].items():
            assert by or f"| {name} | {dtype} | " in PAGE


def test_every_vector_kills_what_it_was_made_against() -> None:
    for i, v in enumerate(VECTORS):
        killed = {m["class"] for m in TABLE["mutants"].values() if i in m["killed_by"]["float32"]}
        for bug in v.bugs:
            if v.result != "invalid" and bug not in WITHOUT_A_MUTANT:
                assert BUGS[bug].family in killed, (v.id, bug)


@pytest.mark.parametrize(
    "name",
    [
        "scale_times[1.01]",
        "none_is_slot_zero",
        "B_read_transposed",
        "rank_cut[8]",
        "slots_off_by_one_block",
        "window_ignored",
    ],
)
def test_some_of_it_again(name: str) -> None:
    """The vectors of single steps, as they were recorded."""
    tested = OpsUnderTest(all_mutants()[name].make, LoadedModels())
    steps = [i for i, v in enumerate(VECTORS) if v.kind in ("lora", "kv_write", "attention")]
    found = [i for i in steps if judge(VECTORS[i], tested, "float32").verdict == "fail"]
    assert found == [i for i in TABLE["mutants"][name]["killed_by"]["float32"] if i in steps]
