"""A drawing in two forms, and the canvas that SVG is collected on: boxes, texts, paths, and marks of what is wrong.

Lines and texts are in currentColor, so that they are seen on a light and on a dark page. There is no <style> and no id:
several drawings stand in one page, and none changes another.
"""

import html
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .letters import printable

# Told apart by readers who confuse red and green (Paul Tol's "bright" scheme). With a seventh adapter they begin again;
# the number that stands in each box does not.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
GREY = "#999999"  # no adapter, or nobody's
FAINT, SOLID = 0.42, 0.7  # of a box's colour: more hides the text in it, on a dark page or on a light one

MARGIN = 10  # around everything
TITLE, SIZE, LINE = 14, 12, 18  # of the title, of every other text, and from one line of text to the next
TITLE_LETTERS = 88  # of one line of the title
READABLE = 0.7  # of its width to which a drawing shrinks; less: a phone shows letters that nobody can read
NOTES = 4  # lines about what is wrong; more: the drawing disappears above them

Point = tuple[float, float]


def colour(adapter_id: int) -> str:
    """Return the colour of an adapter slot; of -1, no adapter, it is grey."""
    return GREY if adapter_id < 0 else COLOURS[adapter_id % len(COLOURS)]


@dataclass(frozen=True)
class Diagram:
    """One drawing as SVG, which a notebook shows, and the same in letters, which print shows: at most 100 columns."""

    svg: str
    text: str

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        """Return the SVG as a part of the page: as an image it would not see the page's colour.

        On a narrow page it shrinks as far as it can be read, and then scrolls."""
        return f'<div style="overflow-x:auto">{self.svg}</div>'

    def __str__(self) -> str:
        return self.text

    def document(self) -> str:
        """Return the SVG as a file, to be shown as an image: with a colour of its own, dark or light as the reader's
        system is."""
        style = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
        start = self.svg.index(">") + 1
        return f"{self.svg[:start]}{style}{self.svg[start:]}\n"


class Box(NamedTuple):
    """A rectangle, in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> Point:
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass
class Canvas:
    """Collects elements, and knows how far they reach: the viewBox holds them all."""

    title: str
    width: float = 240
    height: float = 0
    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for line in textwrap.wrap(printable(self.title), TITLE_LETTERS):
            self.height += TITLE + 6
            self.text((MARGIN, self.height), line, size=TITLE, bold=True)
        self.height = max(self.height + 8, MARGIN)
        self.begin = len(self.parts)

    def fill(self, box: Box, fill: str, opacity: float = FAINT) -> None:
        """Colour a box without an outline."""
        corners = f"M{_n(box.x)} {_n(box.y)}h{_n(box.width)}v{_n(box.height)}h{_n(-box.width)}z"
        self.parts.append(f'<path d="{corners}" fill="{fill}" fill-opacity="{opacity:g}"/>')
        self._reaches(box.x + box.width, box.y + box.height)

    def box(
        self, box: Box, fill: str = "none", opacity: float = FAINT, dashed: bool = False, wrong: bool = False
    ) -> None:
        """Draw a box with an outline of its colour; dashed, or hatched where it is wrong."""
        line = "currentColor" if wrong or fill == "none" else fill
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        inside = "none" if fill == "none" else f'{fill}" fill-opacity="{opacity:g}'
        self.parts.append(
            f'<rect x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" height="{_n(box.height)}" '
            f'fill="{inside}" stroke="{line}" stroke-width="{2 if wrong else 1}"{dashes}/>'
        )
        self._reaches(box.x + box.width + 1, box.y + box.height + 1)
        if wrong:
            self._hatch(box)

    def text(self, at: Point, words: str, anchor: str = "start", size: int = SIZE, bold: bool = False) -> None:
        """Write one line whose baseline is at y, and whose start, middle or end is at x."""
        weight = ' font-weight="bold"' if bold else ""
        words = printable(words)
        if not words:
            return
        self.parts.append(
            f'<text x="{_n(at[0])}" y="{_n(at[1])}" font-size="{size}" text-anchor="{anchor}"{weight}>'
            f"{html.escape(words)}</text>"
        )
        share = {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor]
        self._reaches(at[0] + share * text_width(words, size, bold), at[1] + 0.3 * size)

    def label(self, box: Box, words: str, size: int = SIZE) -> None:
        """Write one line into the middle of a box."""
        x, y = box.middle
        self.text((x, y + 0.36 * size), words, "middle", size)

    def path(self, points: Sequence[Point], stroke: str = "currentColor", dashes: str = "", thick: float = 1) -> None:
        """Draw a line through the points."""
        steps = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        pattern = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(f'<path d="M{steps}" fill="none" stroke="{stroke}" stroke-width="{thick:g}"{pattern}/>')
        for x, y in points:
            self._reaches(x + 1, y + 1)

    def arrow(self, points: Sequence[Point], stroke: str = "currentColor") -> None:
        """Draw a line through the points that ends in a tip; the last piece is straight across, up or down."""
        self.path(points, stroke, thick=1.5)
        (from_x, from_y), (x, y) = points[-2:]
        length = max(abs(x - from_x), abs(y - from_y)) or 1.0
        along, across = (x - from_x) / length * 6, (y - from_y) / length * 6
        tip = [
            (x - along - across / 1.5, y - across - along / 1.5),
            (x, y),
            (x - along + across / 1.5, y - across + along / 1.5),
        ]
        self.path(tip, stroke, thick=1.5)

    def dot(self, at: Point, radius: float, fill: str) -> None:
        """Draw a filled circle."""
        self.parts.append(f'<circle cx="{_n(at[0])}" cy="{_n(at[1])}" r="{radius:g}" fill="{fill}"/>')
        self._reaches(at[0] + radius, at[1] + radius)

    def legend(self, entries: Iterable[tuple[str, str, float]]) -> None:
        """Write (words, colour, opacity) as one row of little boxes with their meanings, below everything."""
        x, y = float(MARGIN), self.height + 10
        for words, fill, opacity in entries:
            wide = 20 + text_width(words, SIZE) + 14
            if x > MARGIN and x + wide > max(self.width, 600):
                x, y = float(MARGIN), y + LINE
            self.box(Box(x, y, 12, 12), fill, opacity)
            self.text((x + 20, y + 10.5), words)
            x += wide

    def notes(self, lines: Sequence[str]) -> None:
        """Write what is wrong, below everything; of more than a few, how many more there are."""
        for line in at_most(lines):
            self.text((MARGIN, self.height + LINE), f"! {line}")

    def svg(self) -> str:
        """Return the document. Everything that was drawn is inside of its viewBox; if nothing was, an empty frame."""
        if len(self.parts) == self.begin:
            self.box(Box(MARGIN, self.height + 2, self.width - MARGIN, 30), dashed=True)
        wide, high = _n(self.width + MARGIN), _n(self.height + MARGIN)
        name = html.escape(printable(self.title)) or "diagram"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" role="img" '
            f'aria-label="{name}" style="max-width:100%;min-width:{READABLE * self.width:.0f}px;height:auto" '
            'fill="currentColor" font-family="sans-serif">' + "".join(self.parts) + "</svg>"
        )

    def _hatch(self, box: Box) -> None:
        """Lines at 45 degrees inside of a box: wrong is seen without colour, too."""
        lines = []
        for shift in range(8, int(box.width + box.height), 8):
            x, y = box.x + min(shift, box.width), box.y + max(0.0, shift - box.width)
            length = min(shift, box.width, box.height, box.width + box.height - shift)
            lines.append(f"M{_n(x)} {_n(y)}l{_n(-length)} {_n(length)}")
        self.parts.append(f'<path d="{"".join(lines)}" fill="none" stroke="currentColor" stroke-opacity="0.4"/>')

    def _reaches(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)


def at_most(lines: Sequence[str]) -> list[str]:
    """Return the first notes, each once, and how many more there are."""
    lines = list(dict.fromkeys(lines))
    more = len(lines) - NOTES
    return [*lines[:NOTES], f"and {more} more"] if more > 0 else lines


def text_width(words: str, size: float, bold: bool = False) -> float:
    """Return at least how wide a line is in any common sans-serif font, in pixels: letters as wide as DejaVu's."""
    widths = sum(
        0.4 if letter in "ijltf.,:;'|!()[] " else 1.0 if letter in "mwMW@%" else 0.66 if letter < "A" else
        0.8 if "A" <= letter <= "Z" else 0.66 if letter < "\x7f" else 1.2
        for letter in words
    )  # fmt: skip
    return size * widths * (1.12 if bold else 1.0)


def _n(x: float) -> str:
    """Return a coordinate with one decimal at most."""
    return f"{round(x, 1) + 0.0:.1f}".removesuffix(".0")
