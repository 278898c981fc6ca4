"""What docs/learn.md says is so: the commands, the links, the example of a verdict."""

import re
from pathlib import Path

from refimpl import learn
from refimpl.commands.learn import ACTIONS
from refimpl.learn.exercise import Exercise
from refimpl.learn.grade import grade
from refimpl.learn.units import unit_named, units

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "learn.md").read_text("utf-8")


def test_every_action_is_described_and_there_is_no_other() -> None:
    named = set(re.findall(r"loracle learn ([a-z]+)", PAGE))
    assert named == set(ACTIONS)


def test_every_link_is_a_file() -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGE)]
    assert len(links) >= 3 and all((ROOT / "docs" / link).exists() for link in links)


def test_the_teachers_page_leads_to_every_file_for_teachers_and_has_the_minutes_of_each_unit() -> None:
    page = (ROOT / "teacher" / "README.md").read_text("utf-8")
    links = set(re.findall(r"\]\(([^)#]+)", page))
    files = {file.relative_to(ROOT / "teacher").as_posix() for file in (ROOT / "teacher").glob("*/*.*")}
    assert files <= links and all((ROOT / "teacher" / link).exists() for link in links)
    for unit in units():
        assert f". {unit.title} | {unit.minutes} |" in page, unit.name


def test_the_example_is_what_the_grader_says() -> None:
    unit = learn.load("ch06_prefix_key")
    assert isinstance(unit, Exercise)
    mistake = next(mistake for mistake in unit.mistakes if mistake.name == "without_adapter")
    example = re.search(r"```\n(ch06_prefix_key: not yet.*?)```", PAGE, re.S)
    assert example
    assert without_keys(grade(unit, mistake.function).text()).startswith(without_keys(example[1].rstrip()))


def without_keys(text: str) -> str:
    """Return the text without the bytes of a key, which are its author's."""
    return re.sub(r"[0-9a-f]{6}\.\.", "KEY", text)


def test_the_short_way_and_the_hours_are_those_of_the_course() -> None:
    assert "Chapters 1, 2, 3, 6 and 12 are the short way (three and a half hours)" in PAGE
    short = sum(unit_named(number).minutes for number in ("1", "2", "3", "6", "12"))
    assert 3.25 <= short / 60 <= 3.75
    chapters = sum(unit.minutes for unit in units() if isinstance(unit, Exercise))
    assert 8.5 <= chapters / 60 <= 9.5 and "all twelve take nine" in PAGE
