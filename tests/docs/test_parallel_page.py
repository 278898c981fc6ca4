"""docs/parallel.md: its commands are ones, what it prints is printed, and its table has every mutant."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from refimpl import cli
from refimpl.commands.ranks import ON_RANKS
from refimpl.parallel.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "parallel.md").read_text("utf-8")
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("mpirun ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    launcher, arguments = command.split(" loracle ", 1)
    assert re.fullmatch(r"mpirun -n \d", launcher)
    args = cli.parse(shlex.split(arguments))
    assert args.command in ON_RANKS
    mutants = re.findall(r"mutant=(\w+)", command)
    assert set(mutants) <= set(MUTANTS)


def test_the_examples_print_what_the_page_says() -> None:
    example = doctest.DocTestParser().get_doctest(PAGE, {}, "parallel.md", "parallel.md", 0)
    assert len(example.examples) >= 20
    runner, printed = doctest.DocTestRunner(), list[str]()
    runner.run(example, out=printed.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(printed)


def test_the_table_has_every_mutant_and_its_links() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert list(rows) == list(MUTANTS)
    for name, row in rows.items():
        what, links = row.split(" | ")
        assert what == MUTANTS[name].what
        assert re.findall(r"\]\((.*?)\)", links) == list(MUTANTS[name].links)
        assert MUTANTS[name].links or links == "synthetic"


def test_there_are_commands() -> None:
    assert {cli.parse(shlex.split(command.split(" loracle ", 1)[1])).command for command in COMMANDS} == set(ON_RANKS)
