"""What cannot be drawn is one line, and what is wrong is marked where it is."""

import math
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from refimpl import diagrams
from refimpl.diagrams.canvas import COLOURS, GREY
from refimpl.errors import LoracleError

REFUSED: dict[str, Callable[[], object]] = {
    "rows of A is -1, and must be at least 0": lambda: diagrams.matrices([("A", -1, 2)]),
    "columns of A is 2.5, and must be a whole number": lambda: diagrams.matrices([("A", 1, 2.5)]),
    "matrix 0 is ('A', 1), and must have 3 parts": lambda: diagrams.matrices([("A", 1)]),
    "slot has 2 values, and position has 1": lambda: diagrams.flat_batch({"position": [0], "slot": [0, 1]}, [0]),
    "adapter_ids has 2 values, and slot has 1": lambda: diagrams.flat_batch({"slot": [0]}, [0, 1]),
    "adapter_ids[0] is 'pirate', and must be a whole number": lambda: diagrams.flat_batch({"slot": [0]}, ["pirate"]),
    "request bard: tokens 1 to 3 of a batch of 2, after a request that ends at 1": lambda: diagrams.flat_batch(
        {"slot": [0, 1]}, [0, 0], [("pirate", 0, 1), ("bard", 1, 3)]
    ),
    "there is an expected value of slot, and no row of that name": lambda: diagrams.flat_batch(
        {"position": [0]}, [0], expected={"slot": [0]}
    ),
    "expected slot has 2 values, and slot has 1": lambda: diagrams.flat_batch(
        {"slot": [0]}, [0], expected={"slot": [0, 1]}
    ),
    "there is a limit of slot, and no row of that name": lambda: diagrams.flat_batch({}, [], limits={"slot": 1}),
    "request 0 is ('pirate', 0), and must have 3 parts": lambda: diagrams.flat_batch({}, [], [("pirate", 0)]),
    "the key of block 0 of robot is a list, which cannot be hashed": lambda: diagrams.chains([("robot", ["a"], [[1]])]),
    "request 0 is ('robot', ['a']), and must have 3 parts": lambda: diagrams.chains([("robot", ["a"])]),
    "the grid is 4, and must have 2 parts": lambda: diagrams.launch_grid(4, 32),
    "bar 0 is 'base', and must have 2 parts": lambda: diagrams.bars(["base"]),
    "a point of loss is 3.5, and must have 2 parts": lambda: diagrams.curves({"loss": [3.5]}),
    "num_blocks is -4, and must be at least 0": lambda: diagrams.block_pool(-4, {}),
    "block table of pirate is None, and must be a whole number": lambda: diagrams.block_pool(4, {"pirate": [None]}),
    "robot has words of 2 blocks, and 1 keys": lambda: diagrams.chains([("robot", ["a", "b"], [1])]),
    "there are 0 adapters, and 1 requests": lambda: diagrams.chains([("robot", ["a"], [1])], adapters=[]),
    "robot has 1 values, and pirate has 2": lambda: diagrams.gantt({"pirate": [1, 1], "robot": [1]}),
    "tokens of pirate is -1, and must be at least 0": lambda: diagrams.gantt({"pirate": [-1]}),
    "there is a prompt of bard, and no request of that name": lambda: diagrams.gantt({"pirate": [1]}, {"bard": 1}),
    "wasted of slots is -1, and must be at least 0": lambda: diagrams.memory_bars([("slots", 1, 1, -1, 1)]),
    "form 0 is ('slots', 1), and must have 5 parts": lambda: diagrams.memory_bars([("slots", 1)]),
    "blocks in y is -2, and must be at least 0": lambda: diagrams.launch_grid((1, -2), 32),
    "threads is 0, and must be at least 1": lambda: diagrams.launch_grid((1, 1), 0),
    "block (4, 0) is not in the grid (4, 2)": lambda: diagrams.launch_grid((4, 2), 32, {(4, 0): "after the end"}),
    "size of base is -1, and must be at least 0": lambda: diagrams.bars([("base", -1)]),
    "size of base is nan, and must be finite": lambda: diagrams.bars([("base", math.nan)]),
    "y of loss is inf, and must be finite": lambda: diagrams.curves({"loss": [(0, math.inf)]}),
    "y of loss is 'low', and must be a number": lambda: diagrams.curves({"loss": [(0, "low")]}),
    "x of misses is 0, which has no logarithm": lambda: diagrams.curves({"misses": [(0, 1)]}, log_x=True),
    "there are dots of bard, and no line of that name": lambda: diagrams.curves({}, dots={"bard": [(0, 1)]}),
}

TWO = [("a", ["x"], [1]), ("b", ["x"], [1])]


@pytest.mark.parametrize("message", REFUSED)
def test_a_refusal_is_one_line(message: str) -> None:
    with pytest.raises(LoracleError) as error:
        REFUSED[message]()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("diagram", "notes", "marks"),
    [
        (
            diagrams.flat_batch({"slot": [3, 9]}, [0] * 2, limits={"slot": 8}),
            ["slot 9 of token 1 is not within 0..7"],
            1,
        ),
        (diagrams.flat_batch({"slot": [3, 3]}, [0, 1]), ["slot 3 is written by tokens 0 and 1"], 1),
        (diagrams.flat_batch({"position": [-1]}, [0]), ["position -1 of token 0 is below 0"], 1),
        (diagrams.flat_batch({"adapter_ids": [-2]}, [-2]), ["adapter_ids -2 of token 0 is below -1"], 1),
        (diagrams.flat_batch({"adapter_ids": [-1], "token": [-5]}, [-1]), [], 0),
        (
            diagrams.flat_batch({"adapter_ids": [0, -1]}, [0, -1], expected={"adapter_ids": [0, 0]}),
            ["adapter_ids of token 1 is -1, expected 0"],
            1,
        ),
        (diagrams.block_pool(4, {"a": [0], "b": [0]}), ["block 0 belongs to a and b"], 1),
        (diagrams.block_pool(4, {"a": [0], "b": [0]}, shared=True), [], 0),
        (diagrams.block_pool(4, {"a": [4]}), ["block 4 of a is not within 0..3"], 1),
        (diagrams.chains(TWO), ["key A is the key of a block of a, and of a block of b"], 1),
        (diagrams.chains(TWO, adapters=["robot", "robot"]), [], 0),
        (
            diagrams.chains([("a", ["x", "x"], [1, 1])]),
            ["key A is the key of two blocks of a with other words in them or before them"],
            1,
        ),
        (diagrams.gantt({"a": [5], "b": [4]}, budget=8), ["step 0 computes 9 tokens, and the budget is 8"], 1),
        (diagrams.gantt({"a": [5], "b": [3]}, budget=8), [], 0),
    ],
)
def test_what_is_wrong_is_named_and_hatched(diagram: diagrams.Diagram, notes: list[str], marks: int) -> None:
    assert [line[2:] for line in diagram.text.splitlines() if line.startswith("! ")] == notes
    assert diagram.svg.count('stroke-opacity="0.4"') == marks and diagram.svg.count('stroke-width="2"') == marks


def test_a_preempted_request_computes_prompt_and_output_again() -> None:
    steps = {"robot": [4, 1, 0, 3, 3, 1]}  # 4 of the prompt, one more; then those 5 and the token that came last
    text = diagrams.gantt(steps, {"robot": 4}, preempted={"robot": [3]}).text
    assert text.splitlines()[1].split() == ["robot", "4p", "1", ".", "x3p", "3p", "1"]


def test_colours_are_of_adapters_and_names_are_text() -> None:
    diagram = diagrams.flat_batch({"<i>&": [0, 1, 2]}, [-1, 0, 1], title='a "title" <b>')
    root = ElementTree.fromstring(diagram.svg)
    assert root.attrib["aria-label"] == 'a "title" <b>'
    fills = [element.attrib["fill"] for element in root if element.tag.endswith("rect")]
    assert fills[:3] == [GREY, COLOURS[0], COLOURS[1]]


def test_a_file_has_a_colour_of_its_own() -> None:
    document = diagrams.bars([("base", 1)]).document()
    ElementTree.fromstring(document)
    assert "prefers-color-scheme:dark" in document and document.endswith("</svg>\n")
