"""Curves: what is drawn is where the numbers say, in the SVG and in letters."""

import math
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.drawings import NAMESPACE

from refimpl.diagrams import curves
from refimpl.diagrams.axes import Axes, averaged, spread_labels, tick_step
from refimpl.diagrams.curves import ROWS

LOSSES = st.lists(st.floats(-5, 50), min_size=1, max_size=700)
Point = tuple[float, float]


def lines_of(svg: str) -> list[list[Point]]:
    """Return the points of each coloured line, without the labels' own strokes."""
    paths = [element.attrib for element in ElementTree.fromstring(svg) if element.tag == f"{NAMESPACE}path"]
    coloured = [path["d"] for path in paths if path["stroke"].startswith("#")]
    points = [[tuple(map(float, point.split())) for point in steps[1:].split("L")] for steps in coloured]
    return points[::2]  # every other one is the line beside a name


@given(LOSSES)
def test_every_point_is_between_the_axes(losses: list[float]) -> None:
    points = [(float(i), loss) for i, loss in enumerate(losses)]
    axes = Axes.around(points)
    for point in points:
        x, y = axes.share(point)
        assert 0 <= x <= 1 and -1e-9 <= y <= 1 + 1e-9
    ticks = axes.ticks()
    assert 2 <= len(ticks) <= 10
    assert math.isclose(ticks[0], axes.low, abs_tol=1e-9) and math.isclose(ticks[-1], axes.high, abs_tol=1e-9)
    assert all(axes.first <= x <= axes.last for x in axes.x_ticks(x for x, _ in points))
    (line,) = lines_of(curves({"loss": points}).svg)
    assert 0 < len(line) <= 300 and line == sorted(line, key=lambda point: point[0])


def test_a_lower_loss_is_lower_in_both_forms() -> None:
    diagram = curves({"echo": [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0)]})
    (line,) = lines_of(diagram.svg)
    down = [after - before for (_, before), (_, after) in pairwise(line)]
    assert min(down) > 0 and max(down) - min(down) < 0.25  # y grows downwards; evenly, rounded to 0.1
    rows = [row.partition("|")[2] for row in diagram.text.splitlines()[:ROWS]]
    assert [row.index("a") for row in rows if row] == [0, 21, 42, 63]
    assert [i for i, row in enumerate(rows) if row] == [0, 4, 8, 12]
    assert diagram.text.splitlines()[0].split()[0] == "4" and diagram.text.splitlines()[12].split()[0] == "1"


def test_an_array_of_points_is_a_line() -> None:
    points = [(1.0, 2.0), (2.0, 4.0)]
    assert curves({"loss": np.array(points)}) == curves({"loss": points})


def test_a_logarithm_spreads_what_doubles() -> None:
    points = [(8, 4.0), (32, 3.0), (128, 2.0), (512, 1.0)]
    for log_x, even in ((True, True), (False, False)):
        (line,) = lines_of(curves({"misses": points}, log_x=log_x).svg)
        across = [after - before for (before, _), (after, _) in pairwise(line)]
        assert (max(across) - min(across) < 0.25) is even


def test_dots_are_circles_and_capitals_and_are_never_hidden() -> None:
    lines = {"one": [(i, 1.0) for i in range(64)], "two": [(0, 2.0), (63, 1.0)]}
    diagram = curves(lines, dots={"one": [(63, 1.0)]}, dots_are="held out")
    assert diagram.text.splitlines()[ROWS - 1].partition("|")[2] == "a" * 63 + "A"
    assert diagram.text.endswith("a one (A held out), b two")
    circles = ElementTree.fromstring(diagram.svg).findall(f"{NAMESPACE}circle")
    assert sorted(circle.attrib["r"] for circle in circles) == ["3", "3", "4"]  # a line of two points has two


@given(LOSSES, st.integers(1, 60))
def test_averages_keep_the_mean_where_the_runs_are_equal(losses: list[float], most: int) -> None:
    points = [(float(i), loss) for i, loss in enumerate(losses)]
    means = averaged(points, most)
    assert len(means) <= most
    if len(points) % len(means) == 0:
        assert math.isclose(sum(y for _, y in means) / len(means), sum(losses) / len(losses), abs_tol=1e-9)
    assert averaged(points, len(points)) == points


@given(st.floats(1e-6, 1e6))
def test_a_tick_is_1_2_or_5_and_no_more_than_8_make_the_span(span: float) -> None:
    step = tick_step(span)
    assert 1.5 < span / step <= 8 and f"{step:e}"[0] in "125"


@given(st.lists(st.floats(0, 300), min_size=1, max_size=6))
def test_no_two_labels_overlap(heights: list[float]) -> None:
    result = sorted(spread_labels(heights, 14))
    assert all(after - before >= 14 - 1e-9 for before, after in pairwise(result))
    assert all(label >= height for label, height in zip(spread_labels(heights, 14), heights, strict=True))
