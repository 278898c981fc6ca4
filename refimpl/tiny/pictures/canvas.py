"""An index image and the few things that can be drawn on it: what every drawing of the little world is made of."""

import numpy as np

SIZE = 48
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
PALETTE = np.array(list(COLOURS.values()), np.uint8)
CLEAR = 255



class Canvas:
    """An index image, and the few things that can be drawn on it. x to the right, y down, ends included."""

    def __init__(self, width: int = SIZE, height: int = SIZE) -> None:
        self.a = np.full((height, width), CLEAR, np.uint8)
        self.y, self.x = np.mgrid[:height, :width]

    def paint(self, where, colour: str) -> None:
        self.a[where] = LETTERS[colour]

    def rect(self, x0, y0, x1, y1, colour):
        self.paint((self.x >= x0) & (self.x <= x1) & (self.y >= y0) & (self.y <= y1), colour)

    def disc(self, cx, cy, rx, ry, colour):
        self.paint(((self.x - cx) / (rx + 0.25)) ** 2 + ((self.y - cy) / (ry + 0.25)) ** 2 <= 1, colour)

    def poly(self, points, colour):
        inside = np.zeros(self.a.shape, bool)
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1]):
            if y0 == y1:
                continue
            crosses = (self.y + 0.5 > min(y0, y1)) & (self.y + 0.5 <= max(y0, y1))
            inside ^= crosses & (self.x + 0.5 < x0 + (self.y + 0.5 - y0) * (x1 - x0) / (y1 - y0))
        self.paint(inside, colour)

    def line(self, x0, y0, x1, y1, colour):
        n = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(n + 1):
            self.dots([(round(x0 + (x1 - x0) * i / n), round(y0 + (y1 - y0) * i / n))], colour)

    def dots(self, points, colour):
        for x, y in points:
            if 0 <= x < self.a.shape[1] and 0 <= y < self.a.shape[0]:
                self.a[y, x] = LETTERS[colour]

    def paste(self, other: np.ndarray, x: int, y: int) -> None:
        h, w = other.shape
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, self.a.shape[1]), min(y + h, self.a.shape[0])
        part = other[y0 - y : y1 - y, x0 - x : x1 - x]
        under = self.a[y0:y1, x0:x1]
        under[part != CLEAR] = part[part != CLEAR]


def sprite(rows: str) -> np.ndarray:
    lines = rows.split()
    return np.array([[CLEAR if ch == "." else LETTERS[ch] for ch in row] for row in lines], np.uint8)

def outlined(a: np.ndarray, colour: str = "k") -> np.ndarray:
    """The same with a dark line around it."""
    padded = np.pad(a, 1, constant_values=CLEAR)
    solid = padded != CLEAR
    near = np.zeros_like(solid)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        near |= np.roll(solid, (dy, dx), (0, 1))
    padded[near & ~solid] = LETTERS[colour]
    return padded


