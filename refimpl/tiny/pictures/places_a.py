"""The first twelve places: buildings. The ground begins at row 36."""

from .canvas import Canvas

def ground(c, top, below):
    c.rect(0, 36, 47, 47, below)
    c.rect(0, 36, 47, 36, top)


def windows(c, xs, ys, w, h, colour):
    for y in ys:
        for x in xs:
            c.rect(x, y, x + w - 1, y + h - 1, colour)


def battlements(c, x0, x1, y, colour):
    for x in range(x0, x1, 4):
        c.rect(x, y - 2, x + 1, y, colour)


def toad_museum(c):
    ground(c, "g", "m")
    c.rect(17, 33, 45, 36, "g")
    c.rect(18, 20, 44, 33, "d")
    for x in range(19, 44, 6):
        c.rect(x, 20, x + 2, 33, "w")
    c.poly([(16, 20), (31, 13), (47, 20)], "g")
    c.rect(17, 19, 45, 20, "w")
    c.disc(31, 10, 7, 4, "G")
    c.disc(27, 6, 2, 2, "G")
    c.disc(35, 6, 2, 2, "G")
    c.dots([(27, 6), (35, 6)], "k")
    c.rect(27, 11, 35, 11, "D")


def leaky_lighthouse(c):
    ground(c, "s", "b")
    for i, y in enumerate(range(12, 36, 4)):
        c.poly([(27 - i / 2, y), (36 + i / 2, y), (36.5 + i / 2, y + 4), (26.5 - i / 2, y + 4)], "rw"[i % 2])
    c.rect(27, 6, 36, 11, "d")
    c.rect(28, 7, 35, 10, "y")
    c.poly([(26, 6), (31.5, 1), (37, 6)], "r")
    c.poly([(38, 8), (47, 4), (47, 13), (38, 10)], "y")
    c.rect(22, 34, 41, 36, "e")
    for x, y in ((24, 16), (39, 21), (23, 25), (40, 29)):
        c.dots([(x, y), (x, y + 1)], "c")
        c.dots([(x - 1, y + 2), (x, y + 2), (x + 1, y + 2)], "c")


def haunted_bakery(c):
    ground(c, "T", "e")
    c.rect(18, 18, 43, 36, "T")
    c.disc(30, 13, 13, 6, "o")
    for x in (22, 28, 34):
        c.line(x, 10, x + 3, 15, "B")
    for i, x in enumerate(range(17, 45, 4)):
        c.rect(x, 19, x + 3, 22, "rw"[i % 2])
    windows(c, (20, 28), (25,), 6, 6, "v")
    c.dots([(21, 27), (24, 27), (29, 27), (32, 27)], "w")
    c.disc(40, 6, 4, 4, "w")
    c.rect(36, 6, 44, 10, "w")
    c.dots([(38, 5), (41, 5)], "k")
    c.dots([(36, 11), (39, 11), (43, 11)], "w")


def goblin_bank(c):
    ground(c, "y", "e")
    c.rect(19, 16, 43, 36, "G")
    c.rect(17, 13, 45, 16, "D")
    c.poly([(17, 15), (11, 8), (18, 12)], "G")
    c.poly([(45, 15), (48, 5), (42, 13)], "G")
    c.poly([(19, 13), (31, 5), (43, 13)], "D")
    c.disc(31, 22, 5, 5, "y")
    c.rect(31, 18, 31, 26, "o")
    c.rect(29, 19, 33, 19, "o")
    c.rect(29, 22, 33, 22, "o")
    c.rect(29, 25, 33, 25, "o")
    c.rect(20, 30, 42, 31, "D")
    windows(c, (20, 24, 36, 40), (32,), 2, 4, "k")


def crooked_tower(c):
    ground(c, "G", "D")
    c.poly([(24, 36), (27, 28), (36, 28), (38, 36)], "v")
    c.poly([(27, 28), (31, 20), (39, 21), (36, 28)], "p")
    c.poly([(31, 20), (27, 13), (36, 10), (39, 21)], "v")
    c.poly([(24, 14), (23, 1), (39, 9)], "r")
    c.rect(30, 30, 33, 33, "y")
    c.rect(33, 22, 35, 25, "y")
    c.rect(31, 14, 34, 17, "y")


def mud_palace(c):
    ground(c, "B", "u")
    c.rect(18, 22, 45, 36, "B")
    for x, r in ((22, 5), (32, 7), (42, 4)):
        c.disc(x, 19 - (r - 4) * 2, r, r, "B")
        c.line(x, 19 - (r - 4) * 2 - r - 3, x, 19 - (r - 4) * 2 - r, "u")
        c.dots([(x - 2, 17 - (r - 4) * 2)], "T")
    for x in (18, 23, 28, 34, 40, 44):
        c.rect(x, 22, x + 1, 25 + x % 3 * 2, "u")
    c.disc(31, 33, 4, 5, "k")
    windows(c, (21, 39), (28,), 3, 4, "y")


def polite_volcano(c):
    ground(c, "e", "B")
    c.poly([(14, 36), (26, 10), (37, 10), (48, 34), (48, 36)], "B")
    c.poly([(26, 10), (37, 10), (39, 15), (36, 13), (34, 18), (31, 13), (28, 16), (24, 14)], "r")
    c.rect(27, 9, 36, 10, "o")
    c.disc(31, 4, 4, 3, "g")
    c.disc(36, 2, 4, 2, "g")
    c.rect(26, 20, 27, 22, "k")
    c.rect(34, 20, 35, 22, "k")
    c.dots([(26, 25), (35, 25)], "k")
    c.rect(27, 26, 34, 26, "k")
    c.dots([(24, 24), (37, 24)], "P")
    c.poly([(27, 29), (31, 31), (27, 33)], "b")
    c.poly([(36, 29), (31, 31), (36, 33)], "b")


def rubber_bridge(c):
    ground(c, "c", "b")
    c.poly([(13, 34), (18, 20), (24, 14), (39, 14), (45, 20), (48, 30), (48, 36), (43, 36), (40, 27), (31, 23), (23, 27), (19, 36), (13, 36)], "P")
    c.poly([(13, 33), (18, 19), (24, 13), (39, 13), (45, 19), (48, 29), (48, 31), (45, 22), (39, 16), (24, 16), (18, 22), (14, 36)], "r")
    for x in (20, 25, 30, 35, 40):
        c.line(x, 9, x, 15, "d")
    c.line(16, 12, 25, 8, "d")
    c.line(25, 8, 38, 8, "d")
    c.line(38, 8, 47, 13, "d")
    c.rect(23, 38, 28, 38, "s")
    c.rect(15, 41, 21, 41, "s")


def cloud_stable(c):
    ground(c, "w", "s")
    for x, y, r in ((20, 32, 6), (28, 30, 7), (38, 31, 8), (46, 33, 6)):
        c.disc(x, y, r, r - 2, "w")
    c.rect(22, 16, 41, 28, "r")
    c.poly([(19, 17), (25, 9), (38, 9), (44, 17)], "B")
    c.rect(27, 20, 36, 28, "u")
    c.line(27, 20, 36, 28, "w")
    c.line(36, 20, 27, 28, "w")
    c.disc(31, 13, 1, 1, "y")
    for x, y, r in ((18, 28, 4), (25, 30, 4), (40, 29, 5)):
        c.disc(x, y, r, 3, "w")
    c.rect(0, 37, 47, 37, "2")


def troll_spa(c):
    ground(c, "T", "B")
    c.rect(17, 29, 46, 36, "T")
    c.rect(19, 27, 45, 33, "t")
    c.rect(19, 27, 45, 27, "s")
    c.disc(30, 20, 8, 8, "G")
    c.disc(30, 21, 3, 2, "D")
    c.rect(25, 17, 27, 18, "w")
    c.rect(33, 17, 35, 18, "w")
    c.dots([(26, 18), (34, 18)], "k")
    c.rect(21, 26, 39, 27, "s")
    c.poly([(22, 13), (22, 9), (38, 9), (38, 13)], "w")
    c.rect(24, 7, 36, 9, "P")
    for x in (18, 43):
        for y in range(6, 25, 3):
            c.dots([(x + y // 3 % 2, y), (x + y // 3 % 2, y + 1)], "w")


def turnip_cathedral(c):
    ground(c, "l", "D")
    c.rect(20, 21, 43, 36, "g")
    c.poly([(20, 21), (24, 15), (39, 15), (43, 21)], "m")
    c.disc(31, 11, 6, 6, "P")
    c.disc(31, 13, 5, 4, "w")
    c.line(31, 5, 31, 1, "G")
    c.line(29, 5, 26, 1, "G")
    c.line(33, 5, 36, 1, "G")
    c.disc(31, 25, 3, 3, "b")
    c.dots([(31, 25), (31, 23), (31, 27), (29, 25), (33, 25)], "y")
    c.disc(31, 33, 3, 5, "u")
    windows(c, (22, 39), (24,), 2, 7, "r")
    c.line(21, 20, 21, 13, "m")
    c.line(42, 20, 42, 13, "m")


def ghost_school(c):
    ground(c, "m", "d")
    c.rect(18, 19, 45, 36, "s")
    c.poly([(16, 19), (31, 11), (47, 19)], "d")
    c.rect(28, 5, 35, 14, "s")
    c.poly([(26, 6), (31.5, 1), (37, 6)], "d")
    c.disc(31, 9, 2, 2, "y")
    c.rect(31, 11, 31, 12, "k")
    for x in (20, 28, 36):
        c.disc(x + 2, 24, 2, 2, "w")
        c.rect(x, 24, x + 4, 28, "w")
        c.dots([(x + 1, 24), (x + 3, 24)], "k")
        c.dots([(x + 1, 28), (x + 3, 28)], "s")
    c.rect(22, 31, 27, 35, "D")
    c.line(23, 33, 26, 33, "w")


def moth_opera(c):
    ground(c, "o", "p")
    c.rect(18, 15, 45, 36, "y")
    c.rect(20, 17, 43, 36, "k")
    c.poly([(20, 17), (30, 17), (24, 28), (20, 36)], "r")
    c.poly([(44, 17), (33, 17), (39, 28), (44, 36)], "r")
    c.poly([(31, 11), (18, 2), (17, 10), (24, 15)], "T")
    c.poly([(32, 11), (45, 2), (46, 10), (39, 15)], "T")
    c.disc(22, 8, 2, 2, "B")
    c.disc(41, 8, 2, 2, "B")
    c.rect(31, 6, 32, 15, "B")
    c.dots([(29, 3), (30, 4), (34, 3), (33, 4)], "B")
    c.rect(25, 34, 38, 36, "o")


