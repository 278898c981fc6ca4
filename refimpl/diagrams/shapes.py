"""Matrices, to scale: how little an adapter is beside the weight that it changes."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from ..errors import LoracleError
from .canvas import COLOURS, GREY, LINE, MARGIN, SIZE, Box, Canvas, Diagram, colour, text_width
from .inputs import whole_number
from .letters import NAME, WIDTH, aligned, shorten, titled

LONGEST = 200  # pixels of the longest side; of a shorter one in proportion, though never less than the thinnest
THINNEST = 2
LINE_OF_MATRICES = 920  # pixels; the matrices that do not fit stand below
LETTERS = 24  # of the longest side, in letters, which are twice as high as they are wide

Shape = tuple[str, int, int, str]  # name, rows, columns, colour
Matrix = tuple[Any, ...]  # (name, rows, columns), or with the number of an adapter slot as the fourth


def matrices(shapes: Sequence[Matrix], title: str = "") -> Diagram:
    """Return matrices side by side, at one scale, each with its shape and how many numbers it holds.

    shapes: (name, rows, columns) of each, in the order of its indices: A is ("A", r, d_in). The first is grey (the
    weight), the others have the colour of adapter slot 0, or of the slot that stands fourth (-1: grey).
    A side shorter than 2 pixels is drawn with 2. LoracleError for a negative size.
    """
    boxes = [_read(i, matrix) for i, matrix in enumerate(shapes)]
    return Diagram(_svg(boxes, title), titled(title, _lines(boxes)))


def _read(i: int, matrix: Matrix) -> Shape:
    if len(matrix) < 3:
        raise LoracleError(f"matrix {i} is {matrix!r}, and must be (name, rows, columns)")
    name = shorten(matrix[0], NAME)
    rows, columns = whole_number(f"rows of {name}", matrix[1], 0), whole_number(f"columns of {name}", matrix[2], 0)
    if len(matrix) > 3:
        return name, rows, columns, colour(whole_number(f"adapter slot of {name}", matrix[3], -1))
    return name, rows, columns, COLOURS[0] if i else GREY


def _svg(boxes: Sequence[Shape], title: str) -> str:
    canvas = Canvas(title)
    scale = LONGEST / _longest(boxes)
    drawings = []
    for name, rows, columns, fill in boxes:
        size = _drawn_size(columns, scale, THINNEST), _drawn_size(rows, scale, THINNEST)
        captions = _captions(name, rows, columns)
        wide = max(size[0], *(text_width(words, SIZE, bold=True) for words in captions))
        drawings.append((wide, size, captions, fill))
    for row in _rows(drawings, LINE_OF_MATRICES, 24):
        x, y = float(MARGIN), canvas.height + (0 if row[0] is drawings[0] else 12)
        tallest = max(size[1] for _, size, _, _ in row)
        for wide, size, captions, fill in row:
            canvas.box(Box(x, y, *size), fill)
            for i, words in enumerate(captions):
                canvas.text((x, y + tallest + LINE * (i + 1)), words, bold=i == 0)
            x += wide + 24
    return canvas.svg()


def _lines(boxes: Sequence[Shape]) -> list[str]:
    scale = LETTERS / _longest(boxes)
    drawings = []
    for name, rows, columns, _ in boxes:
        across, down = round(_drawn_size(columns, scale, 1)), round(_drawn_size(rows, scale / 2, 1))
        captions, body = _captions(name, rows, columns), ["#" * across] * down if across else []
        drawings.append((max(across, *map(len, captions)), [*captions, *body]))
    lines: list[str] = []
    for row in _rows(drawings, WIDTH, 3):
        lines += [""] if lines else []
        for parts in zip_longest(*(body for _, body in row), fillvalue=""):
            cells = [aligned(part, wide) for part, (wide, _) in zip(parts, row, strict=True)]
            lines.append("   ".join(cells).rstrip())
    return lines


def _rows(drawings: Sequence[Any], room: float, gap: float) -> list[list[Any]]:
    """Return the drawings, whose width stands first, in rows that fit into the room."""
    rows: list[list[Any]] = []
    for drawing in drawings:
        if rows and sum(wide + gap for wide, *_ in rows[-1]) + drawing[0] <= room:
            rows[-1].append(drawing)
        else:
            rows.append([drawing])
    return rows


def _longest(boxes: Sequence[Shape]) -> int:
    return max([1, *(side for _, rows, columns, _ in boxes for side in (rows, columns))])


def _captions(name: str, rows: int, columns: int) -> tuple[str, str]:
    count = rows * columns
    return f"{name} [{rows}, {columns}]", f"{count:,} number{'s' * (count != 1)}"


def _drawn_size(side: int, scale: float, thinnest: int) -> float:
    """Return a side to scale; a short one is still seen, and nothing stays nothing."""
    return max(thinnest, side * scale) if side else 0
