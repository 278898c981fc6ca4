"""What several places have: ground, windows, battlements, gears."""

from collections.abc import Iterable

from .canvas import Canvas


def ground(canvas: Canvas, top: str, below: str) -> None:
    """The lower quarter of the picture, with a line of another colour on it."""
    canvas.rect(0, 36, 47, 47, below)
    canvas.rect(0, 36, 47, 36, top)


def windows(canvas: Canvas, xs: Iterable[int], ys: Iterable[int], width: int, height: int, colour: str) -> None:
    """Rows and columns of windows, each with its upper left corner at one x and one y."""
    for y in ys:
        for x in xs:
            canvas.rect(x, y, x + width - 1, y + height - 1, colour)


def battlements(canvas: Canvas, x0: int, x1: int, y: int, colour: str) -> None:
    """Teeth on a wall, two pixels wide, two apart."""
    for x in range(x0, x1, 4):
        canvas.rect(x, y - 2, x + 1, y, colour)


def gear(canvas: Canvas, x: int, y: int, radius: int, colour: str, middle: str) -> None:
    """A wheel with eight teeth."""
    canvas.disc(x, y, radius, radius, colour)
    for dx, dy in ((0, 1), (1, 0), (0, -1), (-1, 0), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7)):
        tooth_x, tooth_y = round(x + dx * (radius + 1)), round(y + dy * (radius + 1))
        canvas.rect(tooth_x - 0.5, tooth_y - 0.5, tooth_x + 0.5, tooth_y + 0.5, colour)
    canvas.disc(x, y, radius - 3, radius - 3, middle)
