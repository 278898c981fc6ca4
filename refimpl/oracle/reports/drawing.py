"""From numbers to shapes: heat maps and the cloud of all rows, as the few attributes of SVG that the page needs.

Colours are steps on one logarithmic scale, log(1 + |x|) of x in units of noise, so that noise is pale and a bug is not,
however large it is. Cells of one colour are one path.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

STEPS = 7  # of colour, on either side of none
FAINTEST = 30.0  # the scale reaches at least to here, or noise alone would look like something

Number = float | None  # None: no number, or none that was shown
Row = tuple[int, Sequence[Number]]  # the column of the first number, and the numbers


def reach(numbers: Iterable[Number]) -> float:
    """Return where the scale of colours ends."""
    return max([FAINTEST, *(abs(x) for x in numbers if x is not None)])


def step(x: float, top: float) -> int:
    """Return the step of colour of x, from -STEPS to STEPS."""
    size = min(STEPS, round(STEPS * math.log1p(abs(x)) / math.log1p(top)))
    return size if x >= 0 else -size


def value(size: float, top: float) -> float:
    """Return the number that has this step of colour: the inverse of step()."""
    return math.expm1(abs(size) / STEPS * math.log1p(top)) * (1 if size >= 0 else -1)


def shade(x: Number, top: float) -> str:
    """Return the colour's class: p1 .. p7 above, n1 .. n7 below, z for noise, none for no number."""
    if x is None:
        return "none"
    size = step(x, top)
    return f"p{size}" if size > 0 else f"n{-size}" if size < 0 else "z"


def heat(rows: Sequence[Row], top: float) -> dict[str, str]:
    """Return, by class, the path of all its cells. A cell is one unit wide and one high; row i is at y = i."""
    paths: dict[str, list[str]] = {}
    for y, (start, numbers) in enumerate(rows):
        shades = [shade(x, top) for x in numbers]
        x = 0
        while x < len(shades):
            n = 1
            while x + n < len(shades) and shades[x + n] == shades[x]:
                n += 1
            paths.setdefault(shades[x], []).append(f"M{start + x} {y}h{n}v1h-{n}z")
            x += n
    return {kind: "".join(parts) for kind, parts in sorted(paths.items())}


@dataclass(frozen=True)
class Dot:
    """Rows of about the same position and size, drawn as one dot."""

    x: float
    y: float
    radius: float
    kind: str  # "base", "adapter", "wrong"
    count: int
    place: int


@dataclass(frozen=True)
class Cloud:
    """All rows of a campaign: place in the text against error, on a logarithmic scale."""

    width: int
    height: int
    margin: int
    bottom: int  # y of the axis
    dots: list[Dot]
    x_ticks: list[tuple[float, int]]
    y_ticks: list[tuple[float, float]]
    fails_y: float
    level: tuple[float, float]  # y from, y to of what honest rows have
    no_number_y: float | None  # where rows without a number are drawn, if there are any


MARGIN, RIGHT, TOP, BELOW = 66, 12, 12, 40  # around the axes, in pixels
ROOM = 26  # above the axes, for rows without a number
COLUMNS = 120  # at most; positions share one where a text is longer

CloudRow = tuple[int, Number, bool]  # position in the text, ratio, of the base?


@dataclass(frozen=True)
class Axes:
    """Where a position and a ratio are in the drawing."""

    width: int
    bottom: int
    first_y: int  # of the largest ratio
    low: float  # log10 of the smallest ratio
    high: float
    last: int  # the last position

    def x(self, position: float) -> float:
        """Return the x of the middle of a position."""
        return MARGIN + (position + 0.5) / (self.last + 1) * (self.width - MARGIN - RIGHT)

    def y(self, ratio: float) -> float:
        """Return the y of a ratio; those that are off the axis are on its ends."""
        share = (math.log10(max(ratio, 1e-12)) - self.low) / (self.high - self.low)
        return self.bottom - min(max(share, 0.0), 1.0) * (self.bottom - self.first_y)

    @property
    def wide(self) -> int:
        """Positions that share a column."""
        return max(1, -(-(self.last + 1) // COLUMNS))


def cloud(batches: Sequence[dict[str, Any]], noise: dict[str, Number], width: int = 940, height: int = 270) -> Cloud:
    """Place every row of a campaign. batches, noise: as in the JSON; width, height: of the drawing, in pixels."""
    rows: list[CloudRow] = [
        (r["first"] + i, x, r["adapter"] is None)
        for batch in batches
        for r in batch["requests"]
        for i, x in enumerate(r["ratios"])
    ]
    fails, level, spread = noise["fails_from"] or 1.0, noise["level"] or 1.0, noise["spread"] or 0.0
    axes = _axes(rows, fails, width, height)
    every = max(1, -(-(axes.last + 1) // 14))
    return Cloud(
        width,
        height,
        MARGIN,
        axes.bottom,
        _dots(rows, fails, axes),
        [(round(axes.x(position), 1), position) for position in range(0, axes.last + 1, every)],
        _powers_of_ten(axes),
        round(axes.y(fails), 1),
        (round(axes.y(level * math.exp(2 * spread)), 1), round(axes.y(level * math.exp(-2 * spread)), 1)),
        TOP + 6.0 if any(x is None for _, x, _ in rows) else None,
    )


def _axes(rows: Sequence[CloudRow], fails: float, width: int, height: int) -> Axes:
    """Return axes on which all rows are, and what fails as well."""
    sizes = [x for _, x, _ in rows if x]
    low, high = math.log10(min(0.3, *sizes, 0.3)), math.log10(max(3 * fails, *sizes, 10))
    low, high = max(low, -3.0), high + 0.06 * (high - low)
    first_y = TOP + (ROOM if any(x is None for _, x, _ in rows) else 0)
    last = max((position for position, _, _ in rows), default=0)
    return Axes(width, height - BELOW, first_y, low, high, last)


def _dots(rows: Sequence[CloudRow], fails: float, axes: Axes) -> list[Dot]:
    """Return a dot for all rows of one kind, column and height; its area says how many they are."""
    together: dict[tuple[int, float, str], int] = {}
    for position, x, base in rows:
        kind = "wrong" if x is None or not x < fails else "base" if base else "adapter"
        y = TOP + 6.0 if x is None else round(axes.y(x) / 5) * 5
        key = (position // axes.wide * axes.wide, y, kind)
        together[key] = together.get(key, 0) + 1
    room = min(9.0, max(2.5, (axes.width - MARGIN - RIGHT) / (axes.last // axes.wide + 1) / 2))
    most = max(together.values(), default=1)
    aside = {"base": -0.22, "adapter": 0.22, "wrong": 0.0}  # so that both are seen
    return [
        Dot(
            round(axes.x(position + aside[kind] * axes.wide), 1),
            y,
            round(max(1.6, room * 0.8 * math.sqrt(n / most)), 1),
            kind,
            n,
            position,
        )
        for (position, y, kind), n in sorted(together.items())
    ]


def _powers_of_ten(axes: Axes) -> list[tuple[float, float]]:
    """Return y and ratio of the powers of ten on the axis, of six at most."""
    tens = range(math.ceil(axes.low), math.floor(axes.high) + 1)
    thin = max(1, len(tens) // 6)
    return [(round(axes.y(10.0**t), 1), 10.0**t) for t in tens if t % thin == 0]
