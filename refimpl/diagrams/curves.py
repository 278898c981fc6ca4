"""Curves: how one number follows from another, a line for each series."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import LoracleError
from .axes import Axes, Point, averaged, spread_labels
from .canvas import MARGIN, SIZE, Canvas, Diagram, colour, text_width
from .inputs import finite_number, parts
from .letters import NAME, printable, shorten, titled, wrapped

WIDE, HIGH = 560, 280  # pixels between the axes
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # one for each line, beside its colour
MOST_POINTS = 300  # of a line in the SVG: a longer one is averaged to these
FEW = 24  # points of a line that are marked with a dot each
COLUMNS, ROWS = 64, 13  # of letters between the axes; an odd number of rows has one in the middle
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Line:
    """One series: a line through its points, and the points of a second kind, which are dots alone."""

    name: str
    points: list[Point]
    dots: list[Point]
    letter: str


class Names(NamedTuple):
    """What the axes and the dots show."""

    x: str
    y: str
    dots: str


def curves(
    lines: Mapping[str, Sequence[Point]],
    x: str = "",
    y: str = "",
    title: str = "",
    log_x: bool = False,
    dots: Mapping[str, Sequence[Point]] | None = None,
    dots_are: str = "dots",
) -> Diagram:
    """Return a line for each name -> (x, y) points, in their order.

    x, y: what the axes show. log_x: a logarithmic axis, for slots, ranks and sizes that double. dots: name -> points
    that are drawn without a line, for example the loss on what was held out; capitals in letters. dots_are: what these
    show.
    LoracleError for a number that is infinite or NaN, an x that has no logarithm, dots of a name that has no line.
    """
    dots = dots or {}
    for name in dots:
        if name not in lines:
            raise LoracleError(f"there are dots of {name}, and no line of that name")
    series = [
        Line(str(name), _points(name, points, log_x), _points(name, dots.get(name, ()), log_x), ALPHABET[i % 26])
        for i, (name, points) in enumerate(lines.items())
    ]
    axes = Axes.around([point for line in series for point in (*line.points, *line.dots)], log_x)
    names = Names(printable(x), printable(y), printable(dots_are))
    return Diagram(_svg(series, axes, names, title), titled(title, _letters(series, axes, names)))


def _points(name: str, points: Sequence[Point], log_x: bool) -> list[Point]:
    result = [
        (finite_number(f"x of {name}", x), finite_number(f"y of {name}", y))
        for x, y in (parts(f"a point of {name}", point, 2) for point in points)
    ]
    for x, _ in result:
        if log_x and x <= 0:
            raise LoracleError(f"x of {name} is {x:g}, which has no logarithm")
    return result


def _svg(series: Sequence[Line], axes: Axes, names: Names, title: str) -> str:
    canvas = Canvas(title)
    ticks = axes.ticks()
    begin = MARGIN + max(text_width(f"{tick:g}", SIZE) for tick in ticks) + 8
    top = canvas.height + 22
    end, bottom = begin + WIDE, top + HIGH
    canvas.text((MARGIN, top - 10), names.y)
    if any(line.dots for line in series):
        canvas.text((end, top - 10), f"dots: {names.dots}", "end")

    def at(point: Point) -> Point:
        across, up = axes.share(point)
        return round(begin + across * WIDE, 1), round(bottom - up * HIGH, 1)

    for tick in ticks:
        height = at((axes.first, tick))[1]
        canvas.path([(begin, height), (end, height)], dashes="1 5")
        canvas.text((begin - 6, height + 4), f"{tick:g}", "end")
    free = 0.0  # where the next label may begin
    for tick in axes.x_ticks(x for line in series for x, _ in (*line.points, *line.dots)):
        across, words = at((tick, axes.low))[0], f"{tick:,g}" if abs(tick) < 1e6 else f"{tick:g}"
        half = text_width(words, SIZE) / 2
        canvas.path([(across, bottom), (across, bottom + 4)])
        if across - half > free:
            canvas.text((across, bottom + 18), words, "middle")
            free = across + half + 4
    canvas.path([(begin, top), (begin, bottom), (end, bottom)])
    canvas.text((begin + WIDE / 2, bottom + 36), names.x, "middle")
    labels = spread_labels([at(line.points[-1])[1] if line.points else top for line in series], SIZE + 4)
    for i, (line, label) in enumerate(zip(series, labels, strict=True)):
        _draw(canvas, [at(point) for point in averaged(line.points, MOST_POINTS)], i)
        for point in line.dots:
            canvas.dot(at(point), 4, colour(i))
        canvas.path([(end + 8, label), (end + 30, label)], colour(i), DASHES[i % len(DASHES)], 2)
        canvas.text((end + 36, label + 4), shorten(line.name, NAME))
    return canvas.svg()


def _draw(canvas: Canvas, points: Sequence[Point], i: int) -> None:
    if points:
        canvas.path(points, colour(i), DASHES[i % len(DASHES)], 2)
    for point in points if len(points) <= FEW else ():
        canvas.dot(point, 3, colour(i))


def _letters(series: Sequence[Line], axes: Axes, names: Names) -> list[str]:
    """Return the same as text: a letter for each line, a capital for its dots.

    Where two fall on one spot the later is seen; a capital always is."""
    grid = [[" "] * COLUMNS for _ in range(ROWS)]

    def mark(points: Sequence[Point], letter: str) -> None:
        """Write the letter once in every column that has points, at the mean of their heights."""
        heights: dict[int, list[float]] = {}
        for point in points:
            across, up = axes.share(point)
            heights.setdefault(round(across * (COLUMNS - 1)), []).append(up)
        for column, shares in heights.items():
            grid[ROWS - 1 - round(sum(shares) / len(shares) * (ROWS - 1))][column] = letter

    for line in series:
        mark(line.points, line.letter)
    for line in series:
        mark(line.dots, line.letter.upper())
    rows = [f"{_scale(axes, i):>8} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    first, last = f"{names.x} {axes.first:g}".lstrip(), f"{axes.last:g}" + (" (log)" if axes.log_x else "")
    key = ", ".join(
        f"{line.letter} {shorten(line.name, NAME)}" + (f" ({line.letter.upper()} {names.dots})" if line.dots else "")
        for line in series
    )
    below = [f"{'':8} +{'-' * COLUMNS}", f"{'':10}{first}{last.rjust(COLUMNS - len(first))}"]
    return [*([names.y] if names.y else []), *rows, *below, *(wrapped(f"{'':10}{key}") if key else [])]


def _scale(axes: Axes, row: int) -> str:
    """The y at the top, the middle and the bottom row; nothing at the others."""
    if row not in (0, ROWS // 2, ROWS - 1):
        return ""
    return f"{axes.high - (axes.high - axes.low) * row / (ROWS - 1):.3g}"
