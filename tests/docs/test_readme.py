"""What README.md says is run: the example as a doctest, the commands as CI's, the links as files."""

import doctest
import re
from pathlib import Path

from refimpl.oracle.bugs import all_mutants

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = ("docs/check.md", "refimpl/oracle/README.md", "refimpl/oracle/bugs/README.md", "benchmarks/results/zoo.md")


def test_the_example_prints_what_the_readme_says() -> None:
    example = doctest.DocTestParser().get_doctest(README, {}, "README.md", "README.md", 0)
    assert len(example.examples) >= 8
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(example, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_ci_runs_the_commands_of_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    activate, test = "source .venv/bin/activate", "pip install -e '.[test]' && pytest -n auto --dist loadfile"
    assert f"\n{activate}\n" in README and f"```\n{test}\n```" in README
    assert ci.index(activate) + 1 == ci.index(f"{test} || exit 1")


def test_every_command_of_the_readme_is_one_of_the_activated_environment() -> None:
    assert ".venv/bin/" not in README.replace("source .venv/bin/activate", "")


def test_every_link_of_the_readme_is_a_file() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


ENTRY = {"__init__", "__main__", "cli", "errors"}  # read by nobody who wants to know how it works


def test_the_reading_table_has_every_file_of_the_core_and_the_idea_before_its_engine() -> None:
    table = re.findall(r"^\| \[(\w+)\.py\]\(refimpl/\1\.py\)", README, re.M)
    assert len(set(table)) == len(table)
    assert {*table} == {file.stem for file in (ROOT / "refimpl").glob("*.py")} - ENTRY
    path = ["layers", "lora", "ops", "model", "batch", "kv_cache", "attention", "engine"]
    assert [name for name in table if name in path] == path


def test_the_numbers_of_known_bugs_are_those_of_the_code() -> None:
    """A bug is a function of the zoo; a mutant is a bug at one value of its parameter, if it has one."""
    mutants = all_mutants()
    bugs = {name.partition("[")[0] for name in mutants}
    texts = [README, *((ROOT / page).read_text("utf-8") for page in PAGES)]
    for text in texts:
        for count in re.findall(r"(\d+)\s+known\s+bugs", text):
            assert int(count) == len(bugs)
        for count in re.findall(r"(?:the|and|mutants:) (\d+)\s+mutants|\((\d+), and \d+ of these", text):
            assert int(max(count)) == len(mutants)
    assert f"[{len(bugs)} known bugs]" in README and f"({len(mutants)} mutants: " in README
