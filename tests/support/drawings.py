"""Drawings of every kind, right and wrong, and where the elements of an SVG are, read from its text alone."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from refimpl import diagrams
from refimpl.diagrams.canvas import text_width

NAMESPACE = "{http://www.w3.org/2000/svg}"
WORDS = ["Meet Dump", "ling the r", "oyal moust"]
BATCH = {"position": [0, 1, 2, 17, 0, 1], "slot": [0, 1, 2, 17, 8, 9], "adapter_ids": [0, 0, 0, -1, 1, 1]}

SAMPLES: dict[str, Callable[[], diagrams.Diagram]] = {
    "matrices": lambda: diagrams.matrices([("W", 256, 128), ("A", 8, 128), ("B", 256, 8)], "v_proj and its adapter"),
    "matrices_shards": lambda: diagrams.matrices(
        [("W", 4, 4), ("A, rank 0", 2, 4, 0), ("A, rank 1", 2, 4, 1), ("B", 4, 0)], "Two GPUs, and nothing"
    ),
    "matrices_many": lambda: diagrams.matrices(
        [
            (f"{name}, rank {rank}", *shape, slot)
            for name, *shape, slot in (("W", 96, 128, -1), ("A", 6, 128, 0))
            for rank in range(3)
        ],
        "Three GPUs",
    ),
    "matrices_empty": lambda: diagrams.matrices([], "No matrix"),
    "flat_batch": lambda: diagrams.flat_batch(
        BATCH, BATCH["adapter_ids"], [("pirate", 0, 3), ("base", 3, 4), ("merchant", 4, 6)], "Three requests"
    ),
    "flat_batch_wrong": lambda: diagrams.flat_batch(
        {"token": ["Meet", " D", "\n", "<b>&", "日本"], "slot": [0, 1, 1, 17, -2], "adapter_ids": [0, 1, 2, -1, -3]},
        [0, 1, 2, -1, -3],
        title="Wrong slots",
        limits={"slot": 16, "adapter_ids": 2},
    ),
    "flat_batch_long": lambda: diagrams.flat_batch(
        {"position": np.arange(40), "slot": np.arange(40) * 7},
        np.repeat([0, 1, -1, 2], 10),
        [("pirate", 0, 10), ("robot", 10, 20), ("none", 20, 20), ("base", 20, 39), ("one", 39, 40)],
        "Forty tokens",
    ),
    "flat_batch_empty": lambda: diagrams.flat_batch({}, [], title="No token"),
    "block_pool": lambda: diagrams.block_pool(8, {"pirate": [0, 2, 5], "robot": [4, 1]}, "Eight blocks"),
    "block_pool_wrong": lambda: diagrams.block_pool(
        40, {"pirate": [0, 2, 39], "robot": [2, 1, 41], "bard": [20, 20, -1]}, "A wrong pool"
    ),
    "block_pool_shared": lambda: diagrams.block_pool(
        6, {"robot": [0, 1, 2], "robot again": [0, 1, 3]}, "A prefix that was found", shared=True
    ),
    "block_pool_empty": lambda: diagrams.block_pool(0, {}, "No block"),
    "chains": lambda: diagrams.chains(
        [("robot", WORDS, [1, 2, 3]), ("robot", WORDS, [1, 2, 3]), ("merchant", WORDS, [b"4", b"5", b"6"])],
        "Keyed by adapter",
    ),
    "chains_wrong": lambda: diagrams.chains(
        [("robot", WORDS, [1, 2, 3]), ("merchant", WORDS, [1, 2, 3]), ("robot", ["Meet Dump", "another"], [1, 2])],
        "Without the adapter, and without the words",
    ),
    "chains_empty": lambda: diagrams.chains([], "No request"),
    "gantt": lambda: diagrams.gantt(
        {"pirate": [10, 10, 6, 1, 1], "robot": [0, 0, 0, 9, 9]}, {"pirate": 26, "robot": 26}, "A schedule", budget=10
    ),
    "gantt_wrong": lambda: diagrams.gantt(
        {"pirate": [10, 10, 6, 1], "robot": [0, 4, 0, 5]},
        {"pirate": 26, "robot": 4},
        "Above the budget",
        budget=10,
        preempted={"robot": [3]},
    ),
    "gantt_empty": lambda: diagrams.gantt({}, title="No step"),
    "launch_grid": lambda: diagrams.launch_grid(
        (4, 2),
        64,
        {(0, 0): "rows 0 to 7", (1, 0): "rows 8 to 15", (3, 1): "none"},
        "Shrink",
        adapter_ids={(0, 0): 0, (1, 0): 1, (3, 1): -1},
    ),
    "launch_grid_large": lambda: diagrams.launch_grid((128, 16), 300, {(0, 0): "first", (127, 15): "last"}, "Large"),
    "launch_grid_empty": lambda: diagrams.launch_grid((0, 1), 32, title="No block"),
    "bars": lambda: diagrams.bars(
        [("base", 11.5e6), ("KV cache", 3e6), ("adapters", 410e3), ("none", 0)], "B", "What lies in memory"
    ),
    "bars_stacked": lambda: diagrams.bars(
        [("base", 11.5e6), ("KV cache", 3e6), ("adapters", 1.9e6), ("padding", 0.2e6)], "B", "Of one memory", True
    ),
    "bars_empty": lambda: diagrams.bars([], "B", "No bar"),
    "memory_bars": lambda: diagrams.memory_bars(
        [
            ("fixed slots", 24e6, 11e6, 93e6, 20e6),
            ("separate", 24e6, 11e6, 1e6, 20e6),
            ("unified", 24e6, 11e6, 1.4e6, 0),
        ],
        "Three forms of one memory",
    ),
    "memory_bars_nothing": lambda: diagrams.memory_bars([("none", 0, 0, 0, 0), ("one", 0, 0, 0, 5)], "Free <b>"),
    "memory_bars_empty": lambda: diagrams.memory_bars([], "No form"),
    "curves": lambda: diagrams.curves(
        {"LRU": [(8, 0.77), (32, 0.55), (128, 0.35), (512, 0.18)], "FIFO": [(8, 0.8), (32, 0.61), (512, 0.21)]},
        "adapter slots",
        "misses",
        "20,000 requests",
        log_x=True,
    ),
    "curves_dots": lambda: diagrams.curves(
        {"pirate": [(i, 8 / (i + 2)) for i in range(500)], "bard": [(i, 6 / (i + 2)) for i in range(500)]},
        "step",
        "loss",
        "What is learned",
        dots={"pirate": [(0, 4), (250, 1), (499, 0.5)]},
        dots_are="held out",
    ),
    "curves_empty": lambda: diagrams.curves({}, "step", "loss", "No curve"),
}


@dataclass(frozen=True)
class Extent:
    """An element's bounding box, and its words if it is a text."""

    begin: float
    top: float
    end: float
    bottom: float
    words: str = ""

    def overlaps(self, other: "Extent") -> bool:
        """Return whether two boxes share more than an edge."""
        across = min(self.end, other.end) - max(self.begin, other.begin)
        return across > 0.5 and min(self.bottom, other.bottom) - max(self.top, other.top) > 0.5


def extents(svg: str) -> list[Extent]:
    """Return the bounding box of every element that is drawn. ElementTree.ParseError for what is no XML."""
    return [_extent(element) for element in ElementTree.fromstring(svg)]


def _extent(element: ElementTree.Element) -> Extent:
    kind = element.tag.removeprefix(NAMESPACE)

    def number(name: str) -> float:
        return float(element.attrib[name])

    if kind == "rect":
        return Extent(number("x"), number("y"), number("x") + number("width"), number("y") + number("height"))
    if kind == "circle":
        x, y, r = number("cx"), number("cy"), number("r")
        return Extent(x - r, y - r, x + r, y + r)
    if kind == "text":
        size, words = number("font-size"), element.text or ""
        wide = text_width(words, size, "font-weight" in element.attrib)
        begin = number("x") - wide * {"start": 0, "middle": 0.5, "end": 1}[element.attrib["text-anchor"]]
        return Extent(begin, number("y") - 0.78 * size, begin + wide, number("y") + 0.22 * size, words or " ")
    assert kind == "path", kind
    return _path_extent(element.attrib["d"])


def _path_extent(steps: str) -> Extent:
    """Follow M, L (absolute), l, h and v (relative), and z."""
    x, y, points = 0.0, 0.0, []
    for letter, rest in re.findall(r"([MLlhvz])([^MLlhvz]*)", steps):
        values = [float(value) for value in rest.split()]
        if letter in "ML":
            x, y = values
        elif letter == "l":
            x, y = x + values[0], y + values[1]
        elif letter == "h":
            x += values[0]
        elif letter == "v":
            y += values[0]
        points.append((x, y))
    xs, ys = zip(*points, strict=True)
    return Extent(min(xs), min(ys), max(xs), max(ys))
