"""The other twelve places."""

from .canvas import Canvas
from .places_a import battlements, ground, windows

def cabbage_fort(c):
    ground(c, "G", "B")
    c.rect(18, 23, 45, 36, "G")
    battlements(c, 18, 46, 22, "G")
    for x, y, r in ((22, 16, 6), (41, 16, 6)):
        c.disc(x, y, r, r, "l")
        c.disc(x - 1, y + 1, r - 3, r - 2, "G")
        c.line(x, y - 4, x, y + 4, "w")
        c.line(x, y, x + 3, y - 3, "w")
        c.line(x, y, x - 3, y - 3, "w")
    c.line(31, 10, 31, 22, "B")
    c.poly([(32, 10), (39, 13), (32, 16)], "r")
    c.disc(31, 33, 4, 5, "D")
    windows(c, (23, 37), (28,), 2, 3, "D")


def whispering_inn(c):
    ground(c, "G", "T")
    c.rect(20, 18, 43, 36, "C")
    c.poly([(16, 19), (24, 7), (39, 7), (47, 19)], "o")
    for y in (10, 13, 16):
        c.rect(22 - (y - 10) // 2, y, 41 + (y - 10) // 2, y, "r")
    for x in (20, 31, 43):
        c.rect(x, 19, x, 36, "B")
    c.rect(20, 27, 43, 27, "B")
    c.line(21, 26, 30, 20, "B")
    windows(c, (34, 38), (21,), 3, 4, "y")
    windows(c, (23,), (30,), 5, 6, "B")
    c.rect(12, 20, 19, 20, "B")
    c.rect(13, 22, 18, 27, "y")
    c.dots([(14, 24), (15, 24), (16, 24), (17, 24), (15, 25), (16, 25)], "r")


def flooded_library(c):
    ground(c, "c", "b")
    c.rect(18, 6, 45, 36, "B")
    for i, y in enumerate((8, 16, 24)):
        c.rect(20, y, 43, y + 6, "u")
        for j, x in enumerate(range(20, 43, 2)):
            h = (j * 7 + i * 3) % 3
            c.rect(x, y + h, x + 1, y + 6, "rbyGoCvtP"[(j * 5 + i * 4) % 9])
    c.rect(14, 29, 47, 36, "b")
    for x in range(14, 48, 4):
        c.dots([(x, 28), (x + 1, 28)], "c")
    c.rect(14, 29, 47, 29, "c")
    c.poly([(20, 31), (27, 31), (25, 28), (22, 28)], "r")
    c.rect(21, 29, 26, 30, "w")


def giant_kitchen(c):
    ground(c, "r", "T")
    for i, x in enumerate(range(0, 48, 6)):
        c.rect(x, 37 + (i % 2) * 5, x + 5, 41 + (i % 2) * 5, "C")
    c.disc(31, 24, 12, 10, "d")
    c.rect(18, 15, 44, 18, "m")
    c.rect(20, 14, 42, 15, "o")
    c.disc(25, 13, 2, 2, "r")
    c.disc(33, 13, 2, 2, "G")
    c.line(38, 14, 44, 2, "T")
    c.line(39, 14, 45, 2, "T")
    c.rect(23, 22, 24, 28, "m")
    for x in (22, 27, 32, 37):
        c.poly([(x, 37), (x + 2, 32), (x + 4, 37)], "o")
        c.dots([(x + 2, 35), (x + 1, 36)], "y")
    for x in (26, 32):
        c.line(x, 10, x + 2, 6, "w")
        c.line(x + 2, 6, x, 2, "w")


def wizard_attic(c):
    ground(c, "T", "B")
    c.poly([(12, 36), (31, 2), (50, 36)], "p")
    c.poly([(17, 36), (31, 11), (45, 36)], "v")
    c.disc(31, 22, 6, 6, "n")
    c.dots([(29, 19), (34, 22), (30, 25), (28, 22), (33, 25)], "w")
    c.disc(32, 21, 2, 2, "y")
    c.disc(33, 20, 1, 1, "n")
    c.rect(22, 31, 27, 36, "B")
    c.rect(23, 32, 26, 33, "y")
    for x, y in ((21, 24), (26, 13), (37, 13), (41, 24)):
        c.dots([(x, y), (x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)], "y")


def pickle_mine(c):
    ground(c, "e", "B")
    c.poly([(13, 36), (20, 18), (29, 10), (37, 13), (48, 30), (48, 36)], "e")
    c.poly([(20, 18), (29, 10), (37, 13), (31, 15), (26, 20)], "g")
    c.rect(23, 21, 38, 36, "k")
    c.rect(21, 20, 24, 36, "B")
    c.rect(37, 20, 40, 36, "B")
    c.rect(20, 18, 41, 21, "T")
    c.rect(24, 30, 37, 35, "d")
    for x in (25, 29, 33):
        c.disc(x + 1, 27, 1, 3, "G")
        c.dots([(x, 26), (x + 1, 28)], "l")
    c.dots([(26, 36), (27, 36), (34, 36), (35, 36)], "g")
    c.disc(31, 11, 3, 5, "G")
    c.dots([(30, 8), (32, 11), (30, 14)], "l")


def bone_garden(c):
    ground(c, "m", "d")
    c.disc(31, 13, 8, 7, "w")
    c.rect(27, 17, 35, 22, "w")
    c.disc(28, 13, 2, 2, "k")
    c.disc(34, 13, 2, 2, "k")
    c.rect(31, 16, 31, 17, "k")
    for x in (28, 30, 32, 34):
        c.rect(x, 20, x, 22, "g")
    for x in (19, 26, 36, 43):
        c.rect(x, 26, x + 1, 36, "C")
        c.rect(x - 1, 25, x + 2, 26, "C")
    for x in (22, 40):
        c.line(x, 36, x, 30, "D")
        c.disc(x, 29, 1, 1, "r")
    c.rect(17, 32, 46, 33, "C")


def windy_abbey(c):
    ground(c, "l", "G")
    c.rect(23, 16, 39, 36, "C")
    c.poly([(21, 17), (31, 8), (41, 17)], "B")
    c.rect(38, 24, 46, 36, "C")
    c.poly([(37, 25), (42, 20), (48, 25)], "B")
    for dx, dy in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        c.poly([(31, 16), (31 + dx * 13, 16 + dy * 11), (31 + dx * 9, 16 + dy * 14)], "w")
        c.line(31, 16, 31 + dx * 12, 16 + dy * 13, "u")
    c.disc(31, 16, 2, 2, "u")
    c.disc(31, 33, 3, 4, "u")


def paper_castle(c):
    ground(c, "C", "T")
    c.rect(20, 20, 43, 36, "w")
    for x in (17, 38):
        c.rect(x, 13, x + 8, 36, "C")
        battlements(c, x, x + 9, 12, "C")
        c.line(x, 13, x + 8, 36, "g")
    battlements(c, 27, 37, 19, "w")
    c.line(26, 36, 31, 21, "g")
    c.line(37, 36, 31, 21, "g")
    c.poly([(28, 36), (31.5, 27), (35, 36)], "m")
    for x, colour in ((21, "r"), (42, "b")):
        c.line(x, 4, x, 11, "m")
        c.poly([(x + 1, 4), (x + 6, 6), (x + 1, 8)], colour)
    c.line(31, 8, 31, 17, "m")
    c.poly([(32, 8), (37, 10), (32, 12)], "y")


def gear(c, x, y, r, colour, middle):
    c.disc(x, y, r, r, colour)
    for dx, dy in ((0, 1), (1, 0), (0, -1), (-1, 0), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7)):
        c.rect(round(x + dx * (r + 1)) - 0.5, round(y + dy * (r + 1)) - 0.5, round(x + dx * (r + 1)) + 0.5, round(y + dy * (r + 1)) + 0.5, colour)
    c.disc(x, y, r - 3, r - 3, middle)


def clockwork_forest(c):
    ground(c, "D", "u")
    for x, y, r in ((42, 14, 5), (22, 15, 5), (32, 11, 7)):
        c.rect(x - 1, y, x + 1, 36, "B")
        gear(c, x, y, r, "G" if r == 5 else "o", "D" if r == 5 else "y")
    c.dots([(32, 11), (32, 10), (32, 9), (33, 11), (34, 11)], "k")
    gear(c, 27, 31, 4, "y", "B")
    gear(c, 37, 31, 3, "o", "B")


def spider_hotel(c):
    ground(c, "d", "k")
    c.rect(21, 12, 42, 36, "#")
    c.rect(19, 10, 44, 13, "p")
    windows(c, (23, 28, 33, 38), (16, 22, 28), 3, 4, "y")
    c.rect(29, 31, 34, 36, "r")
    c.disc(31, 6, 5, 4, "k")
    c.disc(31, 8, 2, 2, "d")
    c.dots([(30, 8), (33, 8)], "r")
    for s in (-1, 1):
        for i, (dx, dy) in enumerate(((5, -4), (7, -1), (8, 3), (7, 7))):
            c.line(31 + s * 4, 6, 31 + s * (dx + 3), 6 + dy - 2, "k")
            c.line(31 + s * (dx + 3), 6 + dy - 2, 31 + s * (dx + 5), 6 + dy + 3, "k")
    c.line(42, 14, 47, 22, "w")
    c.line(42, 20, 47, 22, "w")
    c.line(44, 14, 44, 21, "w")

