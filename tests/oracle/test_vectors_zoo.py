"""The table of which vector kills which mutant (benchmarks/results/vectors.json) is about this set and this zoo."""

import json
import re
from pathlib import Path

import pytest

from refimpl.oracle.bugs import CLASSES, all_mutants, llama_mutants
from refimpl.oracle.vectors.bugs import BUGS
from refimpl.oracle.vectors.read import read_set
from refimpl.oracle.vectors.systems import LoadedModels, OpsUnderTest
from refimpl.oracle.vectors.verify import judge

ROOT = Path(__file__).parents[2]
VECTORS = read_set(ROOT / "tests" / "vectors" / "v1")
FOLDER = ROOT / "refimpl" / "oracle"
TABLE = json.loads((ROOT / "benchmarks" / "results" / "vectors.json").read_text("utf-8"))
PAGE = (ROOT / "benchmarks" / "results" / "vectors.md").read_text("utf-8")
AGAIN = "python benchmarks/vectors.py measures it again"

# Where none of the bug's mutants goes wrong; kernels that tests/kernels/ spoils do.
NO_MUTANT_REACHES = {
    ("lora/all_base", "none"),  # that mutant's slots are those of the batch, and it has none
    ("kv_write/prefill", "positions"),
    ("attention/prefill", "positions"),
    ("attention/chunk", "positions"),
    ("logits/mixed", "positions"),  # those mutants begin anew after a hit, in a chunk or in decode steps
    ("attention/mqa", "heads"),
    ("attention/mha", "heads"),  # that mutant exchanges heads, of which there is one in each group, or one group
    ("attention/long", "length"),  # those mutants lose what LoRA sums up
}


def test_it_is_about_this_set_and_this_zoo() -> None:
    assert TABLE["vectors"] == [v.id for v in VECTORS], AGAIN
    missing = set(llama_mutants()) - set(TABLE["mutants"])
    assert not missing, f"{sorted(missing)} are not in the table: {AGAIN}"


def test_every_mutant_is_killed_and_nothing_clean_is() -> None:
    clean = {(name, dtype): by for name, table in TABLE["clean"].items() for dtype, by in table.items()}
    assert len(clean) == 6 and not any(clean.values())
    assert [name for name, m in TABLE["mutants"].items() if not m["killed_by"]["float32"]] == []
    assert "a hole in the set" not in PAGE
    for name, m in TABLE["mutants"].items():  # what survives in a half type stands on the page, with its reason
        for dtype, by in m["killed_by"].items():
            assert by or f"| {name} | {dtype} | " in PAGE


def test_every_vector_kills_a_mutant_of_each_bug_that_it_was_made_against() -> None:
    missed = {
        (v.id, bug)
        for i, v in enumerate(VECTORS)
        for bug in v.bugs
        if v.result != "invalid" and BUGS[bug].mutants
        if not any(i in TABLE["mutants"][name]["killed_by"]["float32"] for name in BUGS[bug].mutants)
    }
    assert missed == NO_MUTANT_REACHES


def test_a_bug_has_the_class_and_the_links_of_its_mutants() -> None:
    for key, bug in BUGS.items():
        mutants = [all_mutants()[name] for name in bug.mutants]
        assert bug.family in CLASSES, key
        if mutants:
            assert bug.family == mutants[0].family and set(bug.links) == {x for m in mutants for x in m.links}, key
    # No Ops can be wrong so: an id that nobody checks, and a softmax inside of a kernel.
    assert {key for key, bug in BUGS.items() if not bug.mutants} == {"range", "overflow"}


def test_the_classes_are_those_of_the_pages() -> None:
    format_page = (FOLDER / "vectors" / "FORMAT.md").read_text("utf-8")
    assert f"(a letter: {'; '.join(f'{letter} {title}' for letter, title in CLASSES.items())})" in format_page
    table = (FOLDER / "bugs" / "README.md").read_text("utf-8")
    headings = re.findall(r"^## ([A-Z])\. (.+?) \(\[", table, re.MULTILINE)
    assert {letter: title[0].lower() + title[1:] if letter != "H" else title for letter, title in headings} == CLASSES


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
