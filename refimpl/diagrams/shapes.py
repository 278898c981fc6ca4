"""Matrices, to scale: how little an adapter is beside the weight that it changes."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from .canvas import COLOURS, GREY, LINE, MARGIN, SIZE, Box, Canvas, Diagram, colour, text_width
from .inputs import parts, whole_number
from .letters import NAME, WIDTH, aligned, shorten, titled

LONGEST = (200, 140, 100)  # pixels of the longest side: the first with which all stand in one line, or the last
THINNEST = 2  # pixels of a shorter side, which is in proportion otherwise
LINE_OF_MATRICES = 920  # pixels; the matrices that do not fit stand below
LETTERS = (24, 16)  # of the longest side, in letters, which are twice as high as they are wide

Shape = tuple[str, int, int, str]  # name, rows, columns, colour
Drawing = tuple[Any, ...]  # the width, and what is drawn
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
    matrix = parts(f"matrix {i}", matrix, 4 if isinstance(matrix, Sequence) and len(matrix) == 4 else 3)
    name = shorten(matrix[0], NAME)
    rows, columns = whole_number(f"rows of {name}", matrix[1], 0), whole_number(f"columns of {name}", matrix[2], 0)
    if len(matrix) > 3:
        return name, rows, columns, colour(whole_number(f"adapter slot of {name}", matrix[3], -1))
    return name, rows, columns, COLOURS[0] if i else GREY


def _svg(boxes: Sequence[Shape], title: str) -> str:
    canvas = Canvas(title)

    def drawing(shape: Shape, longest: int) -> Drawing:
        """The width with its captions, the size, the captions and the colour."""
        name, rows, columns, fill = shape
        scale, captions = longest / _longest(boxes), _captions(name, rows, columns)
        size = _drawn_size(columns, scale, THINNEST), _drawn_size(rows, scale, THINNEST)
        return max(size[0], *(text_width(words, SIZE, bold=True) for words in captions)), size, captions, fill

    for i, row in enumerate(_rows(boxes, drawing, LONGEST, (LINE_OF_MATRICES, 24))):
        x, y = float(MARGIN), canvas.height + (12 if i else 0)
        tallest = max(size[1] for _, size, _, _ in row)
        for wide, size, captions, fill in row:
            canvas.box(Box(x, y, *size), fill)
            for i, words in enumerate(captions):
                canvas.text((x, y + tallest + LINE * (i + 1)), words, bold=i == 0)
            x += wide + 24
    return canvas.svg()


def _lines(boxes: Sequence[Shape]) -> list[str]:
    def drawing(shape: Shape, longest: int) -> Drawing:
        """The width with its captions, and the lines."""
        name, rows, columns, _ = shape
        scale, captions = longest / _longest(boxes), _captions(name, rows, columns)
        across, down = round(_drawn_size(columns, scale, 1)), round(_drawn_size(rows, scale / 2, 1))
        body = ["#" * across] * down if across else []
        return max(across, *map(len, captions)), [*captions, *body]

    lines: list[str] = []
    for row in _rows(boxes, drawing, LETTERS, (WIDTH, 2)):
        lines += [""] if lines else []
        for pieces in zip_longest(*(body for _, body in row), fillvalue=""):
            cells = [aligned(piece, wide) for piece, (wide, _) in zip(pieces, row, strict=True)]
            lines.append("  ".join(cells).rstrip())
    return lines


def _rows(
    boxes: Sequence[Shape], drawing: Callable[[Shape, int], Drawing], sizes: Sequence[int], room: tuple[int, int]
) -> list[list[Drawing]]:
    """Return the drawings, whose width stands first, in lines that fit into the room (width, gap): one at best."""
    rows: list[list[Drawing]] = []
    for longest in sizes:
        rows = []
        for shape in boxes:
            item = drawing(shape, longest)
            if rows and sum(wide + room[1] for wide, *_ in rows[-1]) + item[0] <= room[0]:
                rows[-1].append(item)
            else:
                rows.append([item])
        if len(rows) <= 1:
            break
    return rows


def _longest(boxes: Sequence[Shape]) -> int:
    return max([1, *(side for _, rows, columns, _ in boxes for side in (rows, columns))])


def _captions(name: str, rows: int, columns: int) -> tuple[str, str]:
    count = rows * columns
    return f"{name} [{rows}, {columns}]", f"{count:,} number{'s' * (count != 1)}"


def _drawn_size(side: int, scale: float, thinnest: int) -> float:
    """Return a side to scale; a short one is still seen, and nothing stays nothing."""
    return max(thinnest, side * scale) if side else 0
