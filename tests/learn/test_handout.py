"""The handout is one page, and its axes are those of the package, its words those of the chapters."""

import re
from collections import Counter
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


def words() -> list[tuple[str, int]]:
    """Return every word of the glossary with the number of its chapter."""
    rows = re.findall(r"^\| (.+) \| .+ \| (\d+) \|$", section("Words"), re.M)
    assert len(rows) == section("Words").count("\n| ") - 1
    return [(word, int(chapter)) for names, chapter in rows for word in names.split(", ")]


def test_every_word_stands_once_and_in_the_order_of_the_chapters() -> None:
    chapters = [chapter for _, chapter in words()]
    assert chapters == sorted(chapters) and set(chapters) == set(range(1, 13))
    counts = Counter(word for word, _ in words())
    assert [word for word in counts if counts[word] > 1] == ["block"]  # of the cache, and of a kernel's grid


def test_every_word_is_in_its_chapter() -> None:
    for file in (Path(learn.__file__).parent / "chapters").glob("ch*.py"):
        text = re.sub(r"\s+", " ", file.read_text("utf-8").replace("\n#", "\n")).lower()
        missing = [
            word for word, chapter in words() if file.stem.startswith(f"ch{chapter:02}_") and word.lower() not in text
        ]
        assert missing == [], file.name
