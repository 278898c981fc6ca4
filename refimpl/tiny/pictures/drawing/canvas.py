"""A picture of palette indices, and the few things that can be drawn on it."""

import math
from collections.abc import Sequence

import numpy as np

from refimpl.arrays import Array, Int

SIZE = 48  # pixels, both ways
# A letter for each colour, so that a sprite can be written down as lines of text.
COLOURS = {
    "k": (26, 24, 38), "d": (60, 62, 88), "m": (110, 118, 140), "g": (172, 182, 196), "w": (250, 248, 240),
    "r": (196, 50, 66), "o": (236, 124, 56), "y": (252, 208, 84), "C": (246, 230, 188), "T": (206, 154, 96),
    "B": (118, 70, 52), "G": (74, 164, 72), "D": (34, 92, 70), "l": (168, 216, 92), "t": (40, 128, 136),
    "n": (36, 44, 98), "b": (58, 92, 196), "c": (92, 170, 236), "s": (178, 228, 246), "p": (106, 50, 118),
    "P": (234, 130, 166), "S": (240, 190, 148), "e": (150, 140, 118), "v": (158, 120, 200), "u": (86, 52, 40),
    # skies
    "1": (132, 196, 236), "2": (182, 222, 240), "3": (116, 132, 158), "4": (148, 160, 178), "5": (246, 164, 108),
    "6": (214, 104, 112), "7": (28, 30, 72), "8": (50, 52, 112), "9": (198, 206, 214), "0": (222, 226, 230),
    "!": (86, 66, 120), '"': (126, 92, 148), "#": (58, 48, 84), "$": (82, 70, 112), "%": (240, 222, 156),
    "&": (248, 236, 192), "(": (70, 108, 128), ")": (108, 152, 152), "*": (170, 150, 140), "+": (196, 180, 166),
}  # fmt: skip
LETTERS = {letter: i for i, letter in enumerate(COLOURS)}
PALETTE = np.array(list(COLOURS.values()), np.uint8)  # [colours, 3]
CLEAR = 255  # the index of a pixel that nothing was drawn on

Point = tuple[float, float]


class Canvas:
    """Palette indices [height, width] and what draws on them. x goes right, y down; both ends of a range are drawn."""

    def __init__(self, width: int = SIZE, height: int = SIZE) -> None:
        self.pixels = np.full((height, width), CLEAR, np.uint8)
        self.y, self.x = np.mgrid[:height, :width]

    def paint(self, where: Int[Array, "height width"], colour: str) -> None:
        """Give every pixel of a mask one colour."""
        self.pixels[where] = LETTERS[colour]

    def rect(self, x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        """Fill a rectangle."""
        top, start = (max(math.ceil(low), 0) for low in (y0, x0))
        self.pixels[top : math.floor(y1) + 1, start : math.floor(x1) + 1] = LETTERS[colour]

    def disc(self, x: float, y: float, x_radius: float, y_radius: float, colour: str) -> None:
        """Fill an ellipse. The quarter pixel rounds the small ones."""
        self.paint(((self.x - x) / (x_radius + 0.25)) ** 2 + ((self.y - y) / (y_radius + 0.25)) ** 2 <= 1, colour)

    def poly(self, points: Sequence[Point], colour: str) -> None:
        """Fill a polygon: a pixel is inside if a ray from its middle crosses an odd number of edges."""
        inside = np.zeros(self.pixels.shape, bool)
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            if y0 == y1:
                continue
            crosses = (self.y + 0.5 > min(y0, y1)) & (self.y + 0.5 <= max(y0, y1))
            inside ^= crosses & (self.x + 0.5 < x0 + (self.y + 0.5 - y0) * (x1 - x0) / (y1 - y0))
        self.paint(inside, colour)

    def line(self, x0: int, y0: int, x1: int, y1: int, colour: str) -> None:
        """Draw a line, one pixel wide."""
        n = max(abs(x1 - x0), abs(y1 - y0), 1)
        self.dots([(round(x0 + (x1 - x0) * i / n), round(y0 + (y1 - y0) * i / n)) for i in range(n + 1)], colour)

    def dots(self, points: Sequence[tuple[int, int]], colour: str) -> None:
        """Draw single pixels; those outside of the canvas are dropped."""
        height, width = self.pixels.shape
        for x, y in points:
            if 0 <= x < width and 0 <= y < height:
                self.pixels[y, x] = LETTERS[colour]

    def paste(self, sprite: Int[Array, "height width"], x: int, y: int) -> None:
        """Lay a sprite over the picture, its upper left corner at (x, y); what is clear in it shows what is below."""
        height, width = self.pixels.shape
        top, start = max(y, 0), max(x, 0)
        bottom, stop = min(y + sprite.shape[0], height), min(x + sprite.shape[1], width)
        part = sprite[top - y : bottom - y, start - x : stop - x]
        below = self.pixels[top:bottom, start:stop]
        below[part != CLEAR] = part[part != CLEAR]


def sprite_of(text: str) -> Int[Array, "height width"]:
    """A sprite from lines of colour letters; a dot is clear."""
    return np.array([[CLEAR if letter == "." else LETTERS[letter] for letter in row] for row in text.split()], np.uint8)


def outlined(sprite: Int[Array, "height width"], colour: str = "k") -> Int[Array, "outlined_height outlined_width"]:
    """The sprite with a line around it, and so two pixels higher and wider."""
    padded = np.pad(sprite, 1, constant_values=CLEAR)
    solid = padded != CLEAR
    near = np.zeros_like(solid)
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        near |= np.roll(solid, shift, (0, 1))
    padded[near & ~solid] = LETTERS[colour]
    return padded
