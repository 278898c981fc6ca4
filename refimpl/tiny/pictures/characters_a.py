"""The first twelve characters."""

from .canvas import Canvas
from .figure import face, person

def dragon_groom(c, mood):
    person(c, "S", "t")
    c.rect(4, 5, 13, 8, "G")
    c.poly([(5, 5), (7, 1), (8, 5), (10, 1), (11, 5), (13, 2), (13, 6)], "G")
    c.rect(4, 8, 4, 13, "G")
    c.rect(13, 8, 13, 13, "G")
    face(c, mood)
    c.rect(15, 12, 16, 20, "T")
    c.rect(14, 10, 17, 12, "w")
    c.rect(7, 17, 10, 21, "B")


def retired_ogre(c, mood):
    person(c, "G", "o", "b")
    c.rect(3, 6, 14, 14, "G")
    c.rect(4, 5, 13, 6, "G")
    c.rect(2, 8, 2, 11, "G")
    c.rect(15, 8, 15, 11, "G")
    face(c, mood)
    c.dots([(6, 15), (6, 14), (11, 15), (11, 14)], "w")
    c.dots([(6, 17), (11, 18), (8, 19), (5, 19), (12, 16)], "y")
    c.rect(3, 17, 3, 20, "G")
    c.rect(14, 17, 14, 20, "G")


def drain_plumber(c, mood):
    person(c, "S", "b", "b")
    c.rect(4, 15, 13, 17, "r")
    c.rect(5, 4, 12, 7, "r")
    c.rect(4, 7, 15, 7, "r")
    c.dots([(6, 16), (11, 16)], "y")
    face(c, mood)
    c.rect(15, 13, 15, 20, "T")
    c.poly([(13, 10), (18, 10), (17, 14), (14, 14)], "r")


def frog_lawyer(c, mood):
    person(c, "l", "k", long=True)
    c.rect(4, 8, 13, 14, "l")
    c.disc(5, 6, 2, 2, "l")
    c.disc(12, 6, 2, 2, "l")
    c.dots([(5, 6), (12, 6)], "k")
    face(c, mood)
    c.rect(7, 15, 10, 18, "w")
    c.rect(8, 16, 9, 16, "r")
    c.rect(14, 17, 17, 21, "T")


def broom_mechanic(c, mood):
    person(c, "S", "m", "m")
    c.rect(5, 5, 12, 7, "o")
    c.rect(4, 7, 13, 8, "u")
    c.rect(5, 6, 7, 8, "c")
    c.rect(10, 6, 12, 8, "c")
    face(c, mood)
    c.rect(15, 7, 15, 23, "T")
    c.poly([(13, 7), (14, 1), (18, 1), (18, 7)], "y")
    c.rect(7, 18, 10, 20, "y")


def monster_dentist(c, mood):
    person(c, "v", "w", long=True)
    c.poly([(4, 8), (4, 3), (7, 7)], "v")
    c.poly([(14, 8), (14, 3), (11, 7)], "v")
    c.rect(5, 7, 12, 7, "d")
    c.disc(9, 6, 1, 1, "s")
    face(c, mood)
    c.rect(13, 17, 17, 19, "w")
    c.dots([(13, 20), (14, 20), (16, 20), (17, 20), (13, 21), (17, 21)], "w")
    c.rect(13, 16, 17, 16, "P")


def potion_taster(c, mood):
    person(c, "S", "p", long=True)
    c.rect(4, 4, 13, 7, "p")
    c.disc(8, 5, 4, 2, "v")
    face(c, mood)
    c.rect(15, 10, 16, 13, "s")
    c.disc(15, 16, 2, 3, "P")
    c.dots([(15, 8), (17, 6), (14, 5)], "P")


def moat_inspector(c, mood):
    person(c, "S", "y", "D", long=True)
    c.disc(8, 6, 4, 3, "y")
    c.rect(3, 7, 14, 8, "y")
    face(c, mood)
    c.rect(8, 16, 8, 22, "o")
    c.disc(15, 13, 2, 2, "s")
    c.rect(15, 16, 15, 19, "u")


def riddle_clerk(c, mood):
    person(c, "S", "T", "u")
    c.rect(5, 6, 12, 7, "u")
    c.rect(3, 7, 14, 8, "G")
    face(c, mood)
    c.dots([(7, 16), (8, 15), (9, 15), (10, 16), (9, 17), (8, 18), (8, 20)], "k")
    c.rect(13, 15, 17, 20, "w")
    c.dots([(14, 16), (15, 16), (16, 16), (14, 18), (15, 18)], "m")


def beard_barber(c, mood):
    person(c, "S", "c", "n")
    c.rect(4, 12, 13, 20, "w")
    c.poly([(5, 20), (13, 20), (9, 24)], "w")
    c.rect(4, 5, 13, 7, "w")
    face(c, mood, y=7)
    c.line(14, 20, 17, 12, "d")
    c.line(17, 20, 14, 12, "d")
    c.dots([(14, 21), (17, 21)], "r")


def midnight_librarian(c, mood):
    person(c, "S", "n", long=True)
    c.disc(8, 5, 5, 3, "n")
    c.rect(4, 6, 4, 14, "n")
    c.rect(13, 6, 13, 14, "n")
    c.disc(8, 4, 1, 1, "y")
    face(c, mood)
    c.rect(12, 16, 17, 21, "r")
    c.rect(13, 17, 16, 17, "C")
    c.rect(13, 19, 16, 19, "C")


def bat_tailor(c, mood):
    c.poly([(5, 16), (0, 8), (0, 20), (3, 18)], "d")
    c.poly([(13, 16), (18, 8), (18, 20), (15, 18)], "d")
    person(c, "e", "k")
    c.poly([(5, 8), (4, 2), (8, 7)], "e")
    c.poly([(13, 8), (14, 2), (10, 7)], "e")
    face(c, mood)
    c.line(5, 16, 12, 20, "y")
    c.line(5, 17, 12, 21, "y")


