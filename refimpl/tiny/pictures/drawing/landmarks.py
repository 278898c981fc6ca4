"""Places that are seen from afar: 48 x 48, to the right of the bubble, one function a place."""

from .canvas import Canvas
from .parts import battlements, gear, ground, windows


def leaky_lighthouse(canvas: Canvas) -> None:
    ground(canvas, "s", "b")
    for i, y in enumerate(range(12, 36, 4)):
        canvas.poly([(27 - i / 2, y), (36 + i / 2, y), (36.5 + i / 2, y + 4), (26.5 - i / 2, y + 4)], "rw"[i % 2])
    canvas.rect(27, 6, 36, 11, "d")
    canvas.rect(28, 7, 35, 10, "y")
    canvas.poly([(26, 6), (31.5, 1), (37, 6)], "r")
    canvas.poly([(38, 8), (47, 4), (47, 13), (38, 10)], "y")
    canvas.rect(22, 34, 41, 36, "e")
    for x, y in ((24, 16), (39, 21), (23, 25), (40, 29)):
        canvas.dots([(x, y), (x, y + 1)], "c")
        canvas.dots([(x - 1, y + 2), (x, y + 2), (x + 1, y + 2)], "c")


def crooked_tower(canvas: Canvas) -> None:
    ground(canvas, "G", "D")
    canvas.poly([(24, 36), (27, 28), (36, 28), (38, 36)], "v")
    canvas.poly([(27, 28), (31, 20), (39, 21), (36, 28)], "p")
    canvas.poly([(31, 20), (27, 13), (36, 10), (39, 21)], "v")
    canvas.poly([(24, 14), (23, 1), (39, 9)], "r")
    canvas.rect(30, 30, 33, 33, "y")
    canvas.rect(33, 22, 35, 25, "y")
    canvas.rect(31, 14, 34, 17, "y")


def mud_palace(canvas: Canvas) -> None:
    ground(canvas, "B", "u")
    canvas.rect(18, 22, 45, 36, "B")
    for x, r in ((22, 5), (32, 7), (42, 4)):
        canvas.disc(x, 19 - (r - 4) * 2, r, r, "B")
        canvas.line(x, 19 - (r - 4) * 2 - r - 3, x, 19 - (r - 4) * 2 - r, "u")
        canvas.dots([(x - 2, 17 - (r - 4) * 2)], "T")
    for x in (18, 23, 28, 34, 40, 44):
        canvas.rect(x, 22, x + 1, 25 + x % 3 * 2, "u")
    canvas.disc(31, 33, 4, 5, "k")
    windows(canvas, (21, 39), (28,), 3, 4, "y")


def polite_volcano(canvas: Canvas) -> None:
    ground(canvas, "e", "B")
    canvas.poly([(14, 36), (26, 10), (37, 10), (48, 34), (48, 36)], "B")
    canvas.poly([(26, 10), (37, 10), (39, 15), (36, 13), (34, 18), (31, 13), (28, 16), (24, 14)], "r")
    canvas.rect(27, 9, 36, 10, "o")
    canvas.disc(31, 4, 4, 3, "g")
    canvas.disc(36, 2, 4, 2, "g")
    canvas.rect(26, 20, 27, 22, "k")
    canvas.rect(34, 20, 35, 22, "k")
    canvas.dots([(26, 25), (35, 25)], "k")
    canvas.rect(27, 26, 34, 26, "k")
    canvas.dots([(24, 24), (37, 24)], "P")
    canvas.poly([(27, 29), (31, 31), (27, 33)], "b")
    canvas.poly([(36, 29), (31, 31), (36, 33)], "b")


def rubber_bridge(canvas: Canvas) -> None:
    ground(canvas, "c", "b")
    canvas.poly(
        [
            (13, 34),
            (18, 20),
            (24, 14),
            (39, 14),
            (45, 20),
            (48, 30),
            (48, 36),
            (43, 36),
            (40, 27),
            (31, 23),
            (23, 27),
            (19, 36),
            (13, 36),
        ],
        "P",
    )
    canvas.poly(
        [
            (13, 33),
            (18, 19),
            (24, 13),
            (39, 13),
            (45, 19),
            (48, 29),
            (48, 31),
            (45, 22),
            (39, 16),
            (24, 16),
            (18, 22),
            (14, 36),
        ],
        "r",
    )
    for x in (20, 25, 30, 35, 40):
        canvas.line(x, 9, x, 15, "d")
    canvas.line(16, 12, 25, 8, "d")
    canvas.line(25, 8, 38, 8, "d")
    canvas.line(38, 8, 47, 13, "d")
    canvas.rect(23, 38, 28, 38, "s")
    canvas.rect(15, 41, 21, 41, "s")


def turnip_cathedral(canvas: Canvas) -> None:
    ground(canvas, "l", "D")
    canvas.rect(20, 21, 43, 36, "g")
    canvas.poly([(20, 21), (24, 15), (39, 15), (43, 21)], "m")
    canvas.disc(31, 11, 6, 6, "P")
    canvas.disc(31, 13, 5, 4, "w")
    canvas.line(31, 5, 31, 1, "G")
    canvas.line(29, 5, 26, 1, "G")
    canvas.line(33, 5, 36, 1, "G")
    canvas.disc(31, 25, 3, 3, "b")
    canvas.dots([(31, 25), (31, 23), (31, 27), (29, 25), (33, 25)], "y")
    canvas.disc(31, 33, 3, 5, "u")
    windows(canvas, (22, 39), (24,), 2, 7, "r")
    canvas.line(21, 20, 21, 13, "m")
    canvas.line(42, 20, 42, 13, "m")


def cabbage_fort(canvas: Canvas) -> None:
    ground(canvas, "G", "B")
    canvas.rect(18, 23, 45, 36, "G")
    battlements(canvas, 18, 46, 22, "G")
    for x, y, r in ((22, 16, 6), (41, 16, 6)):
        canvas.disc(x, y, r, r, "l")
        canvas.disc(x - 1, y + 1, r - 3, r - 2, "G")
        canvas.line(x, y - 4, x, y + 4, "w")
        canvas.line(x, y, x + 3, y - 3, "w")
        canvas.line(x, y, x - 3, y - 3, "w")
    canvas.line(31, 10, 31, 22, "B")
    canvas.poly([(32, 10), (39, 13), (32, 16)], "r")
    canvas.disc(31, 33, 4, 5, "D")
    windows(canvas, (23, 37), (28,), 2, 3, "D")


def pickle_mine(canvas: Canvas) -> None:
    ground(canvas, "e", "B")
    canvas.poly([(13, 36), (20, 18), (29, 10), (37, 13), (48, 30), (48, 36)], "e")
    canvas.poly([(20, 18), (29, 10), (37, 13), (31, 15), (26, 20)], "g")
    canvas.rect(23, 21, 38, 36, "k")
    canvas.rect(21, 20, 24, 36, "B")
    canvas.rect(37, 20, 40, 36, "B")
    canvas.rect(20, 18, 41, 21, "T")
    canvas.rect(24, 30, 37, 35, "d")
    for x in (25, 29, 33):
        canvas.disc(x + 1, 27, 1, 3, "G")
        canvas.dots([(x, 26), (x + 1, 28)], "l")
    canvas.dots([(26, 36), (27, 36), (34, 36), (35, 36)], "g")
    canvas.disc(31, 11, 3, 5, "G")
    canvas.dots([(30, 8), (32, 11), (30, 14)], "l")


def bone_garden(canvas: Canvas) -> None:
    ground(canvas, "m", "d")
    canvas.disc(31, 13, 8, 7, "w")
    canvas.rect(27, 17, 35, 22, "w")
    canvas.disc(28, 13, 2, 2, "k")
    canvas.disc(34, 13, 2, 2, "k")
    canvas.rect(31, 16, 31, 17, "k")
    for x in (28, 30, 32, 34):
        canvas.rect(x, 20, x, 22, "g")
    for x in (19, 26, 36, 43):
        canvas.rect(x, 26, x + 1, 36, "C")
        canvas.rect(x - 1, 25, x + 2, 26, "C")
    for x in (22, 40):
        canvas.line(x, 36, x, 30, "D")
        canvas.disc(x, 29, 1, 1, "r")
    canvas.rect(17, 32, 46, 33, "C")


def windy_abbey(canvas: Canvas) -> None:
    ground(canvas, "l", "G")
    canvas.rect(23, 16, 39, 36, "C")
    canvas.poly([(21, 17), (31, 8), (41, 17)], "B")
    canvas.rect(38, 24, 46, 36, "C")
    canvas.poly([(37, 25), (42, 20), (48, 25)], "B")
    for dx, dy in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        canvas.poly([(31, 16), (31 + dx * 13, 16 + dy * 11), (31 + dx * 9, 16 + dy * 14)], "w")
        canvas.line(31, 16, 31 + dx * 12, 16 + dy * 13, "u")
    canvas.disc(31, 16, 2, 2, "u")
    canvas.disc(31, 33, 3, 4, "u")


def paper_castle(canvas: Canvas) -> None:
    ground(canvas, "C", "T")
    canvas.rect(20, 20, 43, 36, "w")
    for x in (17, 38):
        canvas.rect(x, 13, x + 8, 36, "C")
        battlements(canvas, x, x + 9, 12, "C")
        canvas.line(x, 13, x + 8, 36, "g")
    battlements(canvas, 27, 37, 19, "w")
    canvas.line(26, 36, 31, 21, "g")
    canvas.line(37, 36, 31, 21, "g")
    canvas.poly([(28, 36), (31.5, 27), (35, 36)], "m")
    for x, colour in ((21, "r"), (42, "b")):
        canvas.line(x, 4, x, 11, "m")
        canvas.poly([(x + 1, 4), (x + 6, 6), (x + 1, 8)], colour)
    canvas.line(31, 8, 31, 17, "m")
    canvas.poly([(32, 8), (37, 10), (32, 12)], "y")


def clockwork_forest(canvas: Canvas) -> None:
    ground(canvas, "D", "u")
    for x, y, r in ((42, 14, 5), (22, 15, 5), (32, 11, 7)):
        canvas.rect(x - 1, y, x + 1, 36, "B")
        gear(canvas, x, y, r, "G" if r == 5 else "o", "D" if r == 5 else "y")
    canvas.dots([(32, 11), (32, 10), (32, 9), (33, 11), (34, 11)], "k")
    gear(canvas, 27, 31, 4, "y", "B")
    gear(canvas, 37, 31, 3, "o", "B")
