"""The other twelve characters."""

from .canvas import Canvas
from .figure import face, person

def dungeon_cook(c, mood):
    person(c, "S", "w", "d")
    c.rect(5, 4, 12, 7, "w")
    c.disc(6, 3, 2, 2, "w")
    c.disc(11, 3, 2, 2, "w")
    c.disc(9, 2, 2, 2, "w")
    c.rect(5, 7, 12, 7, "g")
    face(c, mood)
    c.dots([(8, 16), (8, 18), (8, 20)], "r")
    c.rect(15, 11, 15, 19, "m")
    c.disc(15, 10, 2, 1, "m")


def worm_whisperer(c, mood):
    person(c, "S", "D", "B")
    c.rect(4, 5, 13, 7, "B")
    c.rect(4, 7, 4, 12, "B")
    face(c, mood)
    c.rect(3, 14, 14, 16, "P")
    c.rect(13, 10, 15, 16, "P")
    c.rect(14, 8, 17, 10, "P")
    c.dots([(16, 8)], "k")
    c.dots([(5, 15), (8, 15), (11, 15), (14, 12)], "r")


def wand_repairer(c, mood):
    person(c, "S", "c", long=True)
    c.poly([(4, 8), (9, 0), (14, 8)], "c")
    c.rect(3, 7, 14, 7, "b")
    c.dots([(8, 4), (10, 6), (7, 6)], "w")
    face(c, mood)
    c.line(14, 20, 16, 11, "B")
    c.dots([(16, 9), (15, 10), (17, 10), (16, 10), (16, 11), (14, 8), (17, 7)], "y")


def tax_sorcerer(c, mood):
    person(c, "S", "p", long=True)
    c.poly([(4, 8), (7, 0), (14, 8)], "p")
    c.rect(2, 7, 15, 7, "y")
    c.rect(6, 13, 11, 19, "g")
    face(c, mood)
    for y in (20, 17, 14):
        c.disc(15, y, 1, 1, "y")
        c.dots([(16, y)], "o")


def mushroom_poet(c, mood):
    person(c, "C", "C", "e")
    c.disc(8, 6, 8, 5, "r")
    c.rect(4, 9, 13, 14, "C")
    c.disc(5, 4, 1, 1, "w")
    c.disc(11, 3, 1, 1, "w")
    c.dots([(2, 7), (15, 7), (8, 6), (14, 6)], "w")
    face(c, mood, y=9)
    c.line(14, 21, 17, 13, "w")
    c.dots([(13, 22)], "k")


def unicorn_vet(c, mood):
    person(c, "w", "G", "D")
    c.poly([(8, 6), (9, 0), (11, 6)], "y")
    c.rect(4, 6, 13, 14, "w")
    c.rect(3, 6, 4, 13, "P")
    c.rect(5, 5, 7, 7, "P")
    face(c, mood)
    c.rect(8, 16, 9, 20, "w")
    c.rect(7, 17, 10, 19, "w")
    c.rect(8, 17, 9, 19, "r")
    c.rect(3, 17, 3, 20, "w")


def fog_painter(c, mood):
    person(c, "S", "g", "d")
    c.disc(7, 5, 5, 2, "b")
    c.dots([(7, 2)], "b")
    face(c, mood)
    c.disc(15, 18, 2, 3, "T")
    c.dots([(14, 17)], "r")
    c.dots([(16, 17)], "y")
    c.dots([(15, 19)], "b")
    c.dots([(6, 17), (10, 19), (7, 20)], "c")


def rat_captain(c, mood):
    person(c, "m", "n", "w")
    c.disc(4, 8, 2, 2, "P")
    c.disc(13, 8, 2, 2, "P")
    c.rect(5, 8, 12, 14, "m")
    c.poly([(3, 7), (6, 2), (12, 2), (15, 7)], "n")
    c.rect(3, 7, 14, 7, "y")
    c.dots([(8, 4), (9, 4)], "y")
    face(c, mood)
    c.dots([(4, 15), (13, 15), (4, 16), (13, 16), (8, 17), (8, 19)], "y")
    c.line(14, 22, 17, 22, "P")


def puddle_baron(c, mood):
    person(c, "S", "t", long=True)
    c.rect(5, 5, 12, 7, "y")
    c.dots([(5, 4), (5, 3), (8, 4), (9, 3), (12, 4), (12, 3)], "y")
    c.dots([(8, 6)], "r")
    face(c, mood)
    c.rect(4, 15, 13, 16, "w")
    c.poly([(1, 24), (3, 16), (6, 16), (4, 24)], "c")
    c.poly([(17, 24), (15, 16), (12, 16), (14, 24)], "c")
    c.dots([(16, 13), (1, 14)], "c")


def button_knight(c, mood):
    person(c, "S", "g", "m")
    c.rect(4, 5, 13, 8, "g")
    c.rect(4, 8, 4, 14, "g")
    c.rect(13, 8, 13, 14, "g")
    c.rect(8, 1, 9, 4, "r")
    c.dots([(10, 1), (11, 2)], "r")
    face(c, mood)
    c.disc(7, 17, 1, 1, "r")
    c.disc(11, 17, 1, 1, "b")
    c.disc(9, 20, 1, 1, "y")
    c.rect(15, 7, 15, 17, "w")
    c.rect(14, 17, 16, 17, "B")


def curse_salesman(c, mood):
    person(c, "C", "d", "k")
    c.rect(5, 1, 12, 6, "k")
    c.rect(3, 7, 14, 7, "k")
    c.rect(5, 5, 12, 5, "r")
    face(c, mood)
    c.rect(8, 15, 9, 18, "w")
    c.dots([(8, 17)], "r")
    c.poly([(13, 16), (15, 9), (18, 16)], "l")
    c.dots([(15, 15), (15, 14)], "w")


def sock_detective(c, mood):
    person(c, "S", "T", long=True)
    c.disc(8, 6, 4, 3, "B")
    c.rect(2, 7, 15, 7, "B")
    c.rect(6, 5, 11, 5, "T")
    face(c, mood)
    c.rect(8, 15, 8, 22, "B")
    for i, y in enumerate(range(12, 20, 2)):
        c.rect(14, y, 15, y + 1, "rw"[i % 2])
    c.rect(14, 20, 17, 21, "r")

