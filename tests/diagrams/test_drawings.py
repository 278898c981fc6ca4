"""Every drawing, right, wrong or empty: valid, all of it in sight, no text over another, and its letters as they were.

python tests/diagrams/test_drawings.py      writes the letters again, after a change that is meant
"""

import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from support.drawings import SAMPLES, extents

from refimpl import diagrams
from refimpl.diagrams.canvas import COLOURS, GREY
from refimpl.diagrams.letters import table

GOLDEN = Path(__file__).parent / "golden"
TEXT = st.text(max_size=30)
COUNT = st.integers(0, 60)
ADAPTER_ID = st.integers(-2, 9)
SIZE = st.just(0.0) | st.floats(1e-9, 1e15)  # below a nano there is no prefix, and no byte


def check(diagram: diagrams.Diagram) -> None:
    """Hold a drawing against what all of them promise."""
    root = ElementTree.fromstring(diagram.svg)
    assert root.attrib["role"] == "img" and root.attrib["aria-label"]
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    boxes = extents(diagram.svg)
    for box in boxes:
        assert 0 <= box.begin <= box.end <= width and 0 <= box.top <= box.bottom <= height, box
    for one, other in combinations([box for box in boxes if box.words.strip()], 2):
        assert not one.overlaps(other), (one, other)
    colours = {element.attrib[name] for element in root.iter() for name in ("fill", "stroke") if name in element.attrib}
    assert colours <= {"currentColor", "none", GREY, *COLOURS}
    assert not re.search(r"<(script|style|image|use)|\b(id|class|href|on\w+)=", diagram.svg)
    assert all(cell_len(line) <= 100 and line.isprintable() for line in diagram.text.splitlines())
    assert all(line == line.rstrip() for line in diagram.text.splitlines()) and diagram.text


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample(name: str) -> None:
    diagram = SAMPLES[name]()
    check(diagram)
    assert diagram.text == (GOLDEN / f"{name}.txt").read_text("utf-8").rstrip("\n")
    assert SAMPLES[name]() == diagram, "two drawings of one thing differ"
    assert str(diagram) == diagram.text and diagram._repr_svg_() == diagram.svg and diagram.svg in diagram._repr_html_()
    assert ("_wrong" in name) == ("! " in diagram.text) == ("! " in diagram.svg)


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == set(SAMPLES)


@given(st.lists(st.tuples(TEXT, st.integers(0, 10**6), st.integers(0, 10**6)), max_size=6), TEXT)
def test_matrices_of_any_size(shapes: list[tuple[str, int, int]], title: str) -> None:
    check(diagrams.matrices(shapes, title))


@given(st.lists(st.tuples(TEXT, *[SIZE] * 4), max_size=5), TEXT)
def test_memory_of_any_size(forms: list[tuple[str, float, float, float, float]], title: str) -> None:
    check(diagrams.memory_bars(forms, title))


@given(st.data())
def test_a_batch_of_any_size(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 12), max_size=5))
    ids = [data.draw(ADAPTER_ID) for n in lengths for _ in range(n)]
    columns = {
        name: data.draw(st.lists(values, min_size=len(ids), max_size=len(ids)))
        for name, values in (("token", TEXT), ("slot", st.integers(-3, 10**5)))
    }
    requests = [(data.draw(TEXT), sum(lengths[:i]), sum(lengths[: i + 1])) for i in range(len(lengths))]
    check(diagrams.flat_batch(columns, ids, requests, data.draw(TEXT), limits={"slot": 10**4}))


@given(st.integers(0, 3000), st.dictionaries(TEXT, st.lists(st.integers(-2, 3001), max_size=9), max_size=4), TEXT)
def test_a_pool_of_any_size(num_blocks: int, owners: dict[str, list[int]], title: str) -> None:
    diagram = diagrams.block_pool(num_blocks, owners, title)
    check(diagram)
    blocks = [block for who in owners for block in owners[who]]
    right = len(blocks) == len(set(blocks)) and all(0 <= block < num_blocks for block in blocks)
    assert right or "\n! block" in diagram.text


@given(st.lists(st.tuples(TEXT, st.lists(st.tuples(TEXT, st.integers(0, 40)), max_size=7)), max_size=4), TEXT)
def test_chains_of_any_length(rows: list[tuple[str, list[tuple[str, int]]]], title: str) -> None:
    check(diagrams.chains([(who, [word for word, _ in row], [key for _, key in row]) for who, row in rows], title))


@given(st.integers(0, 40), st.lists(TEXT, max_size=4, unique=True), st.data())
def test_a_schedule_of_any_length(steps: int, names: list[str], data: st.DataObject) -> None:
    rows = {name: data.draw(st.lists(st.integers(0, 5000), min_size=steps, max_size=steps)) for name in names}
    prompts = {name: data.draw(st.integers(0, 9000)) for name in names}
    check(diagrams.gantt(rows, prompts, data.draw(TEXT), budget=2048, preempted={name: [1] for name in names}))


@given(COUNT, COUNT, st.integers(1, 1024), st.data())
def test_a_grid_of_any_size(x: int, y: int, threads: int, data: st.DataObject) -> None:
    position = st.tuples(st.integers(0, max(x - 1, 0)), st.integers(0, max(y - 1, 0)))
    size = 5 if x and y else 0
    labels = data.draw(st.dictionaries(position, TEXT, max_size=size))
    owners = data.draw(st.dictionaries(position, st.integers(-1, 9), max_size=size))
    check(diagrams.launch_grid((x, y), threads, labels, data.draw(TEXT), owners))


@given(st.lists(st.tuples(TEXT, SIZE), max_size=30), st.sampled_from(["B", "%", "tokens"]), st.booleans())
def test_bars_of_any_size(items: list[tuple[str, float]], unit: str, stacked: bool) -> None:
    check(diagrams.bars(items, unit, "Sizes", stacked))


@given(
    st.dictionaries(TEXT, st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(-1e6, 1e6)), max_size=40), max_size=7),
    st.booleans(),
)
def test_curves_of_any_length(lines: dict[str, list[tuple[float, float]]], log_x: bool) -> None:
    check(diagrams.curves(lines, "x", "y", "Curves", log_x, {name: points[:3] for name, points in lines.items()}))


if __name__ == "__main__":
    for name in SAMPLES:
        (GOLDEN / f"{name}.txt").write_text(f"{SAMPLES[name]().text}\n", "utf-8")


def test_a_piece_of_a_request_that_is_one_narrow_column_is_no_wider() -> None:
    """The last token of a request in a line of its own: its name has no room there."""
    for words in ("", "\x1f", "a long name"):
        for count in range(28, 40):
            spans = [(words, i, min(i + 7, count)) for i in range(0, count, 7)]
            for line in table([("slot", ["1"] * count)], spans, "request"):
                assert cell_len(line) <= 100, line
