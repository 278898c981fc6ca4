"""The loss of a run as a picture: an SVG that takes the colour of the page around it, and the same in letters."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]  # step, loss

DASHES = ("", "6 3", "2 3", "8 3 2 3")  # one for each adapter; the fifth looks like the first, and has its own label
MOST_POINTS = 300  # of a line in the SVG: a longer run is averaged to these
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Curve:
    """The losses of one adapter: of each step's own examples, and of the held-out ones every now and then."""

    name: str
    train: Sequence[Point]
    held_out: Sequence[Point] = ()


def svg(curves: Sequence[Curve], width: int = 720, height: int = 360) -> str:
    """Return an SVG document: a line for what was trained on, circles for what was held out; all in currentColor.

    Points that are not finite are left out. Without any other there is only the frame."""
    axes = Axes.around(curves)
    begin, end, top, bottom = 56, width - 120, 16, height - 40

    def at(point: Point) -> Point:
        x, y = axes.share(point)
        return round(begin + x * (end - begin), 1), round(bottom - y * (bottom - top), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" color="#444" fill="none" '
        'stroke="currentColor" font-family="sans-serif" font-size="12" role="img">',
        f"<title>Loss of {html.escape(', '.join(curve.name for curve in curves))}</title>",
        f'<path d="M{begin} {top}V{bottom}H{end}"/>',
    ]
    for tick in axes.ticks():
        y = at((axes.first, tick))[1]
        parts.append(
            f'<path d="M{begin} {y}H{end}" stroke-opacity="0.15"/>{_text(begin - 6, y + 4, f"{tick:g}", "end")}'
        )
    parts.append(_text(begin, bottom + 16, f"step {axes.first:g}", "start"))
    parts.append(_text(end, bottom + 16, f"{axes.last:g}", "end"))
    names = labels([at(curve.train[-1])[1] if finite(curve.train) else top for curve in curves], 14)
    for curve, dash, label in zip(curves, _cycled(len(curves)), names, strict=True):
        line = [at(point) for point in averaged(finite(curve.train), MOST_POINTS)]
        if line:
            points = " ".join(f"{x},{y}" for x, y in line)
            parts.append(f'<polyline points="{points}" stroke-dasharray="{dash}" stroke-linejoin="round"/>')
        for x, y in map(at, finite(curve.held_out)):
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="currentColor"/>')
        parts.append(_text(end + 8, label + 4, html.escape(curve.name), "start"))
    parts.append(_text(end, top - 4, "line: trained on; dots: held out", "end"))
    return "\n".join([*parts, "</svg>\n"])


def letters(curves: Sequence[Curve], width: int = 64, height: int = 12) -> str:
    """Return the same as text: a letter for each adapter, small for what was trained on, capital for held out.

    Where two fall on one spot the later is seen; a capital always is."""
    axes = Axes.around(curves)
    grid = [[" "] * width for _ in range(height)]

    def mark(points: Sequence[Point], letter: str) -> None:
        for point in points:
            x, y = axes.share(point)
            grid[height - 1 - round(y * (height - 1))][round(x * (width - 1))] = letter

    for curve, letter in zip(curves, _letters(len(curves)), strict=True):
        mark(averaged(finite(curve.train), width), letter)
    for curve, letter in zip(curves, _letters(len(curves)), strict=True):
        mark(finite(curve.held_out), letter.upper())
    rows = [f"{_scale(axes, i, height):>8} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    last = f"{axes.last:g}"
    first = f"step {axes.first:g}"
    key = ", ".join(
        f"{letter} {curve.name}" + (f" ({letter.upper()} held out)" if curve.held_out else "")
        for curve, letter in zip(curves, _letters(len(curves)), strict=True)
    )
    rows += [f"{'':8} +{'-' * width}", f"{'':10}{first}{last.rjust(width - len(first))}", f"{'':10}{key}"]
    return "\n".join(rows) + "\n"


@dataclass(frozen=True)
class Axes:
    """What the picture spans: from the first step to the last, and all losses, rounded outwards."""

    first: float
    last: float
    low: float
    high: float

    @classmethod
    def around(cls, curves: Sequence[Curve]) -> "Axes":
        """Return the axes that hold every finite point of the curves; from 0 to 1 where there is none."""
        points = [point for curve in curves for point in (*finite(curve.train), *finite(curve.held_out))]
        if not points:
            return cls(0, 1, 0, 1)
        steps, losses = zip(*points, strict=True)
        step = tick_step(max(losses) - min(losses))
        low, high = math.floor(min(losses) / step) * step, math.ceil(max(losses) / step) * step
        return cls(min(steps), max(steps), low, high if high > low else low + step)

    def share(self, point: Point) -> Point:
        """Return where a point lies, as shares of the width and of the height."""
        return (point[0] - self.first) / ((self.last - self.first) or 1), (point[1] - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return the round losses between low and high, both included."""
        step = tick_step(self.high - self.low)
        return [round(self.low + i * step, 10) for i in range(round((self.high - self.low) / step) + 1)]


def tick_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at most 8 of which make the span; 1 for a span of 0."""
    if not span > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / 8))
    return next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 8)


def finite(points: Sequence[Point]) -> list[Point]:
    """Return the points whose loss is a number."""
    return [point for point in points if math.isfinite(point[1])]


def averaged(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most so many points: the means of runs of neighbours, of equal length but for the last."""
    if not points:
        return []
    size = math.ceil(len(points) / most)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def labels(heights: Sequence[float], apart: float) -> list[float]:
    """Return the heights of labels: each at its line's or below it, so that no two are nearer than `apart`."""
    result, lowest = list(heights), -math.inf
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        result[i] = lowest = max(heights[i], lowest + apart)
    return result


def _scale(axes: Axes, row: int, height: int) -> str:
    """The loss at the top, the middle and the bottom row; nothing at the others."""
    if row not in (0, height // 2, height - 1):
        return ""
    return f"{axes.high - (axes.high - axes.low) * row / (height - 1):.3g}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y:g}" text-anchor="{anchor}" fill="currentColor" stroke="none">{text}</text>'


def _cycled(count: int) -> list[str]:
    return [DASHES[i % len(DASHES)] for i in range(count)]


def _letters(count: int) -> list[str]:
    return [LETTERS[i % len(LETTERS)] for i in range(count)]
