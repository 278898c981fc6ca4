"""The handout is one page, and its axes are those of the package."""

import re
from pathlib import Path

import refimpl.config
from refimpl import learn

HANDOUT = (Path(learn.__file__).parent / "handout.md").read_text("utf-8")
LEGEND = (refimpl.config.__doc__ or "").partition("uses these and no others:")[2]


def section(title: str) -> str:
    """Return the text under a heading."""
    return HANDOUT.partition(f"\n## {title}")[2].partition("\n## ")[0]


def test_the_axes_are_those_of_the_legend() -> None:
    """The names begin a line of the legend, or stand before a colon after a semicolon."""
    entries = re.findall(r"(?:^    |;  )([a-z_]+(?: [a-z_]+)?)(?=  |:)", LEGEND, re.M)
    axes = {name for entry in entries for name in entry.split()}
    assert {"tokens", "starts", "d_in", "d_out", "head_dim", "table"} <= axes
    table = section("Axes").partition("\n`W")[0]
    assert set(re.findall(r"`([a-z_]+)`", table)) == axes


def test_it_fits_on_one_page() -> None:
    lines = HANDOUT.splitlines()
    assert len(lines) <= 64 and max(map(len, lines)) <= 150


def test_every_word_has_its_chapter_and_they_are_in_order() -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \| (\d+) \|$", section("Words"), re.M)
    assert len(rows) == section("Words").count("\n| ") - 1
    chapters = [int(chapter) for _, _, chapter in rows]
    assert chapters == sorted(chapters) and set(chapters) == set(range(1, 13))
    words = [word for names, _, _ in rows for word in names.split(", ")]
    assert len(words) == len(set(words)) + 1  # a block of the cache, and one of a kernel
