"""The loss curve: what is drawn is where the numbers say, in the SVG and in letters."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from refimpl.training.curve import Axes, Curve, averaged, labels, letters, svg, tick_step

SVG = "{http://www.w3.org/2000/svg}"
LOSSES = st.lists(st.floats(-5, 50), min_size=1, max_size=700)


def curve_of(losses: list[float], name: str = "echo") -> Curve:
    return Curve(name, list(enumerate(losses)), [(0, losses[0]), (len(losses), losses[-1])])


@given(LOSSES)
def test_every_point_is_inside_of_the_frame(losses: list[float]) -> None:
    curve = curve_of(losses)
    axes = Axes.around([curve])
    for point in (*curve.train, *curve.held_out):
        x, y = axes.share(point)
        assert 0 <= x <= 1 and -1e-9 <= y <= 1 + 1e-9
    assert 2 <= len(axes.ticks()) <= 10 and axes.ticks()[0] == round(axes.low, 10)
    root = ElementTree.fromstring(svg([curve]))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    points = [tuple(map(float, p.split(","))) for p in root.find(f"{SVG}polyline").attrib["points"].split()]
    assert 0 < len(points) <= 300
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_a_lower_loss_is_lower_in_both_pictures() -> None:
    curve = Curve("echo", [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0)])
    line = ElementTree.fromstring(svg([curve])).find(f"{SVG}polyline").attrib["points"].split()
    heights = [float(point.split(",")[1]) for point in line]
    assert heights == sorted(heights)  # y grows downwards
    steps = [b - a for a, b in pairwise(heights)]
    assert max(steps) - min(steps) < 0.25  # evenly spaced, rounded to 0.1
    rows = letters([curve], width=4, height=4).splitlines()
    assert [row.partition("|")[2] for row in rows[:4]] == ["a", " a", "  a", "   a"]
    assert rows[0].split()[0] == "4" and rows[3].split()[0] == "1"


def test_held_out_points_are_circles_and_capitals_and_are_never_hidden() -> None:
    curves = [Curve("one", [(0, 1.0), (9, 1.0)], [(9, 1.0)]), Curve("two", [(0, 2.0), (9, 1.0)])]
    text = letters(curves, width=10, height=5)
    assert text.splitlines()[4].partition("|")[2] == "a        A"
    assert text.rstrip().endswith("a one (A held out), b two")
    root = ElementTree.fromstring(svg(curves))
    assert len(root.findall(f"{SVG}circle")) == 1 and len(root.findall(f"{SVG}polyline")) == 2


def test_the_page_decides_the_colour_and_names_are_text() -> None:
    text = svg([Curve("<b>&", [(0, 1.0)])])
    assert "<b>" not in text and ElementTree.fromstring(text).find(f"{SVG}title").text == "Loss of <b>&"
    assert set(re.findall(r'(?:stroke|fill)="([^"]*)"', text)) <= {"currentColor", "none"}


def test_a_loss_that_is_no_number_is_left_out() -> None:
    curve = Curve("echo", [(0, 2.0), (1, math.nan), (2, math.inf), (3, 1.0)], [(3, math.nan)])
    assert "nan" not in svg([curve]) + letters([curve]) and "inf" not in svg([curve])
    assert len(ElementTree.fromstring(svg([curve])).find(f"{SVG}polyline").attrib["points"].split()) == 2
    for empty in (Curve("echo", []), Curve("echo", [(0, math.nan)])):
        assert "polyline" not in svg([empty]) and "a echo" in letters([empty])


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
    result = sorted(labels(heights, 14))
    assert all(b - a >= 14 - 1e-9 for a, b in pairwise(result))
    assert all(label >= height for label, height in zip(labels(heights, 14), heights, strict=True))
