"""Places that people go into: 48 x 48, to the right of the bubble, one function a place."""

from .canvas import Canvas
from .parts import ground, windows


def toad_museum(canvas: Canvas) -> None:
    ground(canvas, "g", "m")
    canvas.rect(17, 33, 45, 36, "g")
    canvas.rect(18, 20, 44, 33, "d")
    for x in range(19, 44, 6):
        canvas.rect(x, 20, x + 2, 33, "w")
    canvas.poly([(16, 20), (31, 13), (47, 20)], "g")
    canvas.rect(17, 19, 45, 20, "w")
    canvas.disc(31, 10, 7, 4, "G")
    canvas.disc(27, 6, 2, 2, "G")
    canvas.disc(35, 6, 2, 2, "G")
    canvas.dots([(27, 6), (35, 6)], "k")
    canvas.rect(27, 11, 35, 11, "D")


def haunted_bakery(canvas: Canvas) -> None:
    ground(canvas, "T", "e")
    canvas.rect(18, 18, 43, 36, "T")
    canvas.disc(30, 13, 13, 6, "o")
    for x in (22, 28, 34):
        canvas.line(x, 10, x + 3, 15, "B")
    for i, x in enumerate(range(17, 45, 4)):
        canvas.rect(x, 19, x + 3, 22, "rw"[i % 2])
    windows(canvas, (20, 28), (25,), 6, 6, "v")
    canvas.dots([(21, 27), (24, 27), (29, 27), (32, 27)], "w")
    canvas.disc(40, 6, 4, 4, "w")
    canvas.rect(36, 6, 44, 10, "w")
    canvas.dots([(38, 5), (41, 5)], "k")
    canvas.dots([(36, 11), (39, 11), (43, 11)], "w")


def goblin_bank(canvas: Canvas) -> None:
    ground(canvas, "y", "e")
    canvas.rect(19, 16, 43, 36, "G")
    canvas.rect(17, 13, 45, 16, "D")
    canvas.poly([(17, 15), (11, 8), (18, 12)], "G")
    canvas.poly([(45, 15), (48, 5), (42, 13)], "G")
    canvas.poly([(19, 13), (31, 5), (43, 13)], "D")
    canvas.disc(31, 22, 5, 5, "y")
    canvas.rect(31, 18, 31, 26, "o")
    canvas.rect(29, 19, 33, 19, "o")
    canvas.rect(29, 22, 33, 22, "o")
    canvas.rect(29, 25, 33, 25, "o")
    canvas.rect(20, 30, 42, 31, "D")
    windows(canvas, (20, 24, 36, 40), (32,), 2, 4, "k")


def ghost_school(canvas: Canvas) -> None:
    ground(canvas, "m", "d")
    canvas.rect(18, 19, 45, 36, "s")
    canvas.poly([(16, 19), (31, 11), (47, 19)], "d")
    canvas.rect(28, 5, 35, 14, "s")
    canvas.poly([(26, 6), (31.5, 1), (37, 6)], "d")
    canvas.disc(31, 9, 2, 2, "y")
    canvas.rect(31, 11, 31, 12, "k")
    for x in (20, 28, 36):
        canvas.disc(x + 2, 24, 2, 2, "w")
        canvas.rect(x, 24, x + 4, 28, "w")
        canvas.dots([(x + 1, 24), (x + 3, 24)], "k")
        canvas.dots([(x + 1, 28), (x + 3, 28)], "s")
    canvas.rect(22, 31, 27, 35, "D")
    canvas.line(23, 33, 26, 33, "w")


def moth_opera(canvas: Canvas) -> None:
    ground(canvas, "o", "p")
    canvas.rect(18, 15, 45, 36, "y")
    canvas.rect(20, 17, 43, 36, "k")
    canvas.poly([(20, 17), (30, 17), (24, 28), (20, 36)], "r")
    canvas.poly([(44, 17), (33, 17), (39, 28), (44, 36)], "r")
    canvas.poly([(31, 11), (18, 2), (17, 10), (24, 15)], "T")
    canvas.poly([(32, 11), (45, 2), (46, 10), (39, 15)], "T")
    canvas.disc(22, 8, 2, 2, "B")
    canvas.disc(41, 8, 2, 2, "B")
    canvas.rect(31, 6, 32, 15, "B")
    canvas.dots([(29, 3), (30, 4), (34, 3), (33, 4)], "B")
    canvas.rect(25, 34, 38, 36, "o")


def whispering_inn(canvas: Canvas) -> None:
    ground(canvas, "G", "T")
    canvas.rect(20, 18, 43, 36, "C")
    canvas.poly([(16, 19), (24, 7), (39, 7), (47, 19)], "o")
    for y in (10, 13, 16):
        canvas.rect(22 - (y - 10) // 2, y, 41 + (y - 10) // 2, y, "r")
    for x in (20, 31, 43):
        canvas.rect(x, 19, x, 36, "B")
    canvas.rect(20, 27, 43, 27, "B")
    canvas.line(21, 26, 30, 20, "B")
    windows(canvas, (34, 38), (21,), 3, 4, "y")
    windows(canvas, (23,), (30,), 5, 6, "B")
    canvas.rect(12, 20, 19, 20, "B")
    canvas.rect(13, 22, 18, 27, "y")
    canvas.dots([(14, 24), (15, 24), (16, 24), (17, 24), (15, 25), (16, 25)], "r")


def flooded_library(canvas: Canvas) -> None:
    ground(canvas, "c", "b")
    canvas.rect(18, 6, 45, 36, "B")
    for i, y in enumerate((8, 16, 24)):
        canvas.rect(20, y, 43, y + 6, "u")
        for j, x in enumerate(range(20, 43, 2)):
            h = (j * 7 + i * 3) % 3
            canvas.rect(x, y + h, x + 1, y + 6, "rbyGoCvtP"[(j * 5 + i * 4) % 9])
    canvas.rect(14, 29, 47, 36, "b")
    for x in range(14, 48, 4):
        canvas.dots([(x, 28), (x + 1, 28)], "c")
    canvas.rect(14, 29, 47, 29, "c")
    canvas.poly([(20, 31), (27, 31), (25, 28), (22, 28)], "r")
    canvas.rect(21, 29, 26, 30, "w")


def spider_hotel(canvas: Canvas) -> None:
    ground(canvas, "d", "k")
    canvas.rect(21, 12, 42, 36, "#")
    canvas.rect(19, 10, 44, 13, "p")
    windows(canvas, (23, 28, 33, 38), (16, 22, 28), 3, 4, "y")
    canvas.rect(29, 31, 34, 36, "r")
    canvas.disc(31, 6, 5, 4, "k")
    canvas.disc(31, 8, 2, 2, "d")
    canvas.dots([(30, 8), (33, 8)], "r")
    for side in (-1, 1):
        for dx, dy in ((5, -4), (7, -1), (8, 3), (7, 7)):
            canvas.line(31 + side * 4, 6, 31 + side * (dx + 3), 6 + dy - 2, "k")
            canvas.line(31 + side * (dx + 3), 6 + dy - 2, 31 + side * (dx + 5), 6 + dy + 3, "k")
    canvas.line(42, 14, 47, 22, "w")
    canvas.line(42, 20, 47, 22, "w")
    canvas.line(44, 14, 44, 21, "w")


def giant_kitchen(canvas: Canvas) -> None:
    ground(canvas, "r", "T")
    for i, x in enumerate(range(0, 48, 6)):
        canvas.rect(x, 37 + (i % 2) * 5, x + 5, 41 + (i % 2) * 5, "C")
    canvas.disc(31, 24, 12, 10, "d")
    canvas.rect(18, 15, 44, 18, "m")
    canvas.rect(20, 14, 42, 15, "o")
    canvas.disc(25, 13, 2, 2, "r")
    canvas.disc(33, 13, 2, 2, "G")
    canvas.line(38, 14, 44, 2, "T")
    canvas.line(39, 14, 45, 2, "T")
    canvas.rect(23, 22, 24, 28, "m")
    for x in (22, 27, 32, 37):
        canvas.poly([(x, 37), (x + 2, 32), (x + 4, 37)], "o")
        canvas.dots([(x + 2, 35), (x + 1, 36)], "y")
    for x in (26, 32):
        canvas.line(x, 10, x + 2, 6, "w")
        canvas.line(x + 2, 6, x, 2, "w")


def wizard_attic(canvas: Canvas) -> None:
    ground(canvas, "T", "B")
    canvas.poly([(12, 36), (31, 2), (50, 36)], "p")
    canvas.poly([(17, 36), (31, 11), (45, 36)], "v")
    canvas.disc(31, 22, 6, 6, "n")
    canvas.dots([(29, 19), (34, 22), (30, 25), (28, 22), (33, 25)], "w")
    canvas.disc(32, 21, 2, 2, "y")
    canvas.disc(33, 20, 1, 1, "n")
    canvas.rect(22, 31, 27, 36, "B")
    canvas.rect(23, 32, 26, 33, "y")
    for x, y in ((21, 24), (26, 13), (37, 13), (41, 24)):
        canvas.dots([(x, y), (x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)], "y")


def troll_spa(canvas: Canvas) -> None:
    ground(canvas, "T", "B")
    canvas.rect(17, 29, 46, 36, "T")
    canvas.rect(19, 27, 45, 33, "t")
    canvas.rect(19, 27, 45, 27, "s")
    canvas.disc(30, 20, 8, 8, "G")
    canvas.disc(30, 21, 3, 2, "D")
    canvas.rect(25, 17, 27, 18, "w")
    canvas.rect(33, 17, 35, 18, "w")
    canvas.dots([(26, 18), (34, 18)], "k")
    canvas.rect(21, 26, 39, 27, "s")
    canvas.poly([(22, 13), (22, 9), (38, 9), (38, 13)], "w")
    canvas.rect(24, 7, 36, 9, "P")
    for x in (18, 43):
        for y in range(6, 25, 3):
            canvas.dots([(x + y // 3 % 2, y), (x + y // 3 % 2, y + 1)], "w")


def cloud_stable(canvas: Canvas) -> None:
    ground(canvas, "w", "s")
    for x, y, r in ((20, 32, 6), (28, 30, 7), (38, 31, 8), (46, 33, 6)):
        canvas.disc(x, y, r, r - 2, "w")
    canvas.rect(22, 16, 41, 28, "r")
    canvas.poly([(19, 17), (25, 9), (38, 9), (44, 17)], "B")
    canvas.rect(27, 20, 36, 28, "u")
    canvas.line(27, 20, 36, 28, "w")
    canvas.line(36, 20, 27, 28, "w")
    canvas.disc(31, 13, 1, 1, "y")
    for x, y, r in ((18, 28, 4), (25, 30, 4), (40, 29, 5)):
        canvas.disc(x, y, r, 3, "w")
    canvas.rect(0, 37, 47, 37, "2")
