"""Characters that are not: an ogre, a frog, a bat, a mushroom ... One function a character."""

from .canvas import Canvas
from .figure import face, person


def retired_ogre(canvas: Canvas, mood: str) -> None:
    person(canvas, "G", "o", "b")
    canvas.rect(3, 6, 14, 14, "G")
    canvas.rect(4, 5, 13, 6, "G")
    canvas.rect(2, 8, 2, 11, "G")
    canvas.rect(15, 8, 15, 11, "G")
    face(canvas, mood)
    canvas.dots([(6, 15), (6, 14), (11, 15), (11, 14)], "w")
    canvas.dots([(6, 17), (11, 18), (8, 19), (5, 19), (12, 16)], "y")
    canvas.rect(3, 17, 3, 20, "G")
    canvas.rect(14, 17, 14, 20, "G")


def frog_lawyer(canvas: Canvas, mood: str) -> None:
    person(canvas, "l", "k", long=True)
    canvas.rect(4, 8, 13, 14, "l")
    canvas.disc(5, 6, 2, 2, "l")
    canvas.disc(12, 6, 2, 2, "l")
    canvas.dots([(5, 6), (12, 6)], "k")
    face(canvas, mood)
    canvas.rect(7, 15, 10, 18, "w")
    canvas.rect(8, 16, 9, 16, "r")
    canvas.rect(14, 17, 17, 21, "T")


def monster_dentist(canvas: Canvas, mood: str) -> None:
    person(canvas, "v", "w", long=True)
    canvas.poly([(4, 8), (4, 3), (7, 7)], "v")
    canvas.poly([(14, 8), (14, 3), (11, 7)], "v")
    canvas.rect(5, 7, 12, 7, "d")
    canvas.disc(9, 6, 1, 1, "s")
    face(canvas, mood)
    canvas.rect(13, 17, 17, 19, "w")
    canvas.dots([(13, 20), (14, 20), (16, 20), (17, 20), (13, 21), (17, 21)], "w")
    canvas.rect(13, 16, 17, 16, "P")


def bat_tailor(canvas: Canvas, mood: str) -> None:
    canvas.poly([(5, 16), (0, 8), (0, 20), (3, 18)], "d")
    canvas.poly([(13, 16), (18, 8), (18, 20), (15, 18)], "d")
    person(canvas, "e", "k")
    canvas.poly([(5, 8), (4, 2), (8, 7)], "e")
    canvas.poly([(13, 8), (14, 2), (10, 7)], "e")
    face(canvas, mood)
    canvas.line(5, 16, 12, 20, "y")
    canvas.line(5, 17, 12, 21, "y")


def mushroom_poet(canvas: Canvas, mood: str) -> None:
    person(canvas, "C", "C", "e")
    canvas.disc(8, 6, 8, 5, "r")
    canvas.rect(4, 9, 13, 14, "C")
    canvas.disc(5, 4, 1, 1, "w")
    canvas.disc(11, 3, 1, 1, "w")
    canvas.dots([(2, 7), (15, 7), (8, 6), (14, 6)], "w")
    face(canvas, mood, y=9)
    canvas.line(14, 21, 17, 13, "w")
    canvas.dots([(13, 22)], "k")


def unicorn_vet(canvas: Canvas, mood: str) -> None:
    person(canvas, "w", "G", "D")
    canvas.poly([(8, 6), (9, 0), (11, 6)], "y")
    canvas.rect(4, 6, 13, 14, "w")
    canvas.rect(3, 6, 4, 13, "P")
    canvas.rect(5, 5, 7, 7, "P")
    face(canvas, mood)
    canvas.rect(8, 16, 9, 20, "w")
    canvas.rect(7, 17, 10, 19, "w")
    canvas.rect(8, 17, 9, 19, "r")
    canvas.rect(3, 17, 3, 20, "w")


def rat_captain(canvas: Canvas, mood: str) -> None:
    person(canvas, "m", "n", "w")
    canvas.disc(4, 8, 2, 2, "P")
    canvas.disc(13, 8, 2, 2, "P")
    canvas.rect(5, 8, 12, 14, "m")
    canvas.poly([(3, 7), (6, 2), (12, 2), (15, 7)], "n")
    canvas.rect(3, 7, 14, 7, "y")
    canvas.dots([(8, 4), (9, 4)], "y")
    face(canvas, mood)
    canvas.dots([(4, 15), (13, 15), (4, 16), (13, 16), (8, 17), (8, 19)], "y")
    canvas.line(14, 22, 17, 22, "P")


def curse_salesman(canvas: Canvas, mood: str) -> None:
    person(canvas, "C", "d", "k")
    canvas.rect(5, 1, 12, 6, "k")
    canvas.rect(3, 7, 14, 7, "k")
    canvas.rect(5, 5, 12, 5, "r")
    face(canvas, mood)
    canvas.rect(8, 15, 9, 18, "w")
    canvas.dots([(8, 17)], "r")
    canvas.poly([(13, 16), (15, 9), (18, 16)], "l")
    canvas.dots([(15, 15), (15, 14)], "w")
