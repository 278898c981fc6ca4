"""docs/pictures.md: its commands are ones, its options are the code's, and its figures are those that were measured."""

import argparse
import doctest
import json
import re
import shlex
from pathlib import Path

import pytest

from refimpl import cli
from refimpl.commands import draw
from refimpl.commands.scenes import foreign

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pictures.md").read_text("utf-8")
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("loracle ")]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "pictures.json").read_text("utf-8"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    args = cli.parse(shlex.split(command)[1:])
    assert args.command in ("draw", "demo")
    assert args.command == "demo" or not foreign(args.prompt[0])


def test_there_are_both_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} == {"draw", "demo"}


def test_every_option_stands_in_the_table_with_its_default() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    draw.add_arguments(parser)
    table = re.findall(r"^\| (`--.*?) \| (.*?) \|$", PAGE, re.M)
    listed = {option for names, _ in table for option in re.findall(r"--[\w-]+", names)}
    assert listed == {action.option_strings[0] for action in parser._actions} - {"--device", "--ops"}
    texts = dict(table)
    args = parser.parse_args([])
    assert texts["`--steps N`"].endswith(f"; {args.steps}") and texts["`--zoom N`"].endswith(f"; {args.zoom}")
    both = texts["`--max-new-tokens N`, `--temperature T`"]
    assert both.endswith(f"; {args.max_new_tokens}, {args.temperature}")


def test_the_example_prints_what_the_page_says() -> None:
    example = doctest.DocTestParser().get_doctest(PAGE, {}, "pictures.md", "pictures.md", 0)
    assert len(example.examples) >= 8
    runner, printed = doctest.DocTestRunner(), list[str]()
    runner.run(example, out=printed.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(printed)


def test_the_figures_are_those_that_were_measured() -> None:
    measured = PAGE.partition("<!-- measured: benchmarks/results/pictures.json -->")[2].partition("<!-- end -->")[0]
    machine, seconds = RESULTS["machine"], RESULTS["cpu_seconds_per_picture"]
    rows = dict(re.findall(r"^\| (\w.*?) \| ([\d.]+) \|$", measured, re.M))
    assert rows == {name: f"{number:.2f}" for name, number in seconds.items()} and len(rows) == 3
    assert machine["date"][:10] in measured and f"load {machine['load']}" in measured
    assert f"{RESULTS['steps']} steps" in measured


def test_a_picture_takes_two_seconds_at_most() -> None:
    assert max(RESULTS["cpu_seconds_per_picture"].values()) <= 2


def test_the_quality_is_that_of_the_evaluation() -> None:
    quality = json.loads((ROOT / "refimpl" / "tiny" / "pictures" / "quality.json").read_text("utf-8"))["fresh"]
    table = PAGE.partition("<!-- quality: ")[2].partition("<!-- end of quality -->")[0]
    rows = {cells[0]: cells[1:] for cells in (re.split(r" \| ", line.strip("| ")) for line in table.splitlines()[1:])}
    assert rows["of 100 pictures, the judge sees"] == [*quality]
    keys = {
        "place, character and treasure right": "content (all three)",
        "the style right": "style",
        "the mood right": "mood",
        "the weather right": "weather",
    }
    for words, key in keys.items():
        assert rows[words] == [f"{100 * figures[key]:.0f} %" for figures in quality.values()], words
    assert {figures["pictures"] for figures in quality.values()} == {100}
