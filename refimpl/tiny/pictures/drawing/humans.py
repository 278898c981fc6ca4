"""Characters that are people: 18 x 24, one function a character."""

from .canvas import Canvas
from .figure import face, person


def dragon_groom(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "t")
    canvas.rect(4, 5, 13, 8, "G")
    canvas.poly([(5, 5), (7, 1), (8, 5), (10, 1), (11, 5), (13, 2), (13, 6)], "G")
    canvas.rect(4, 8, 4, 13, "G")
    canvas.rect(13, 8, 13, 13, "G")
    face(canvas, mood)
    canvas.rect(15, 12, 16, 20, "T")
    canvas.rect(14, 10, 17, 12, "w")
    canvas.rect(7, 17, 10, 21, "B")


def drain_plumber(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "b", "b")
    canvas.rect(4, 15, 13, 17, "r")
    canvas.rect(5, 4, 12, 7, "r")
    canvas.rect(4, 7, 15, 7, "r")
    canvas.dots([(6, 16), (11, 16)], "y")
    face(canvas, mood)
    canvas.rect(15, 13, 15, 20, "T")
    canvas.poly([(13, 10), (18, 10), (17, 14), (14, 14)], "r")


def broom_mechanic(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "m", "m")
    canvas.rect(5, 5, 12, 7, "o")
    canvas.rect(4, 7, 13, 8, "u")
    canvas.rect(5, 6, 7, 8, "c")
    canvas.rect(10, 6, 12, 8, "c")
    face(canvas, mood)
    canvas.rect(15, 7, 15, 23, "T")
    canvas.poly([(13, 7), (14, 1), (18, 1), (18, 7)], "y")
    canvas.rect(7, 18, 10, 20, "y")


def potion_taster(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "p", long=True)
    canvas.rect(4, 4, 13, 7, "p")
    canvas.disc(8, 5, 4, 2, "v")
    face(canvas, mood)
    canvas.rect(15, 10, 16, 13, "s")
    canvas.disc(15, 16, 2, 3, "P")
    canvas.dots([(15, 8), (17, 6), (14, 5)], "P")


def moat_inspector(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "y", "D", long=True)
    canvas.disc(8, 6, 4, 3, "y")
    canvas.rect(3, 7, 14, 8, "y")
    face(canvas, mood)
    canvas.rect(8, 16, 8, 22, "o")
    canvas.disc(15, 13, 2, 2, "s")
    canvas.rect(15, 16, 15, 19, "u")


def riddle_clerk(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "T", "u")
    canvas.rect(5, 6, 12, 7, "u")
    canvas.rect(3, 7, 14, 8, "G")
    face(canvas, mood)
    canvas.dots([(7, 16), (8, 15), (9, 15), (10, 16), (9, 17), (8, 18), (8, 20)], "k")
    canvas.rect(13, 15, 17, 20, "w")
    canvas.dots([(14, 16), (15, 16), (16, 16), (14, 18), (15, 18)], "m")


def beard_barber(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "c", "n")
    canvas.rect(4, 12, 13, 20, "w")
    canvas.poly([(5, 20), (13, 20), (9, 24)], "w")
    canvas.rect(4, 5, 13, 7, "w")
    face(canvas, mood, y=7)
    canvas.line(14, 20, 17, 12, "d")
    canvas.line(17, 20, 14, 12, "d")
    canvas.dots([(14, 21), (17, 21)], "r")


def midnight_librarian(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "n", long=True)
    canvas.disc(8, 5, 5, 3, "n")
    canvas.rect(4, 6, 4, 14, "n")
    canvas.rect(13, 6, 13, 14, "n")
    canvas.disc(8, 4, 1, 1, "y")
    face(canvas, mood)
    canvas.rect(12, 16, 17, 21, "r")
    canvas.rect(13, 17, 16, 17, "C")
    canvas.rect(13, 19, 16, 19, "C")


def dungeon_cook(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "w", "d")
    canvas.rect(5, 4, 12, 7, "w")
    canvas.disc(6, 3, 2, 2, "w")
    canvas.disc(11, 3, 2, 2, "w")
    canvas.disc(9, 2, 2, 2, "w")
    canvas.rect(5, 7, 12, 7, "g")
    face(canvas, mood)
    canvas.dots([(8, 16), (8, 18), (8, 20)], "r")
    canvas.rect(15, 11, 15, 19, "m")
    canvas.disc(15, 10, 2, 1, "m")


def worm_whisperer(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "D", "B")
    canvas.rect(4, 5, 13, 7, "B")
    canvas.rect(4, 7, 4, 12, "B")
    face(canvas, mood)
    canvas.rect(3, 14, 14, 16, "P")
    canvas.rect(13, 10, 15, 16, "P")
    canvas.rect(14, 8, 17, 10, "P")
    canvas.dots([(16, 8)], "k")
    canvas.dots([(5, 15), (8, 15), (11, 15), (14, 12)], "r")


def wand_repairer(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "c", long=True)
    canvas.poly([(4, 8), (9, 0), (14, 8)], "c")
    canvas.rect(3, 7, 14, 7, "b")
    canvas.dots([(8, 4), (10, 6), (7, 6)], "w")
    face(canvas, mood)
    canvas.line(14, 20, 16, 11, "B")
    canvas.dots([(16, 9), (15, 10), (17, 10), (16, 10), (16, 11), (14, 8), (17, 7)], "y")


def tax_sorcerer(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "p", long=True)
    canvas.poly([(4, 8), (7, 0), (14, 8)], "p")
    canvas.rect(2, 7, 15, 7, "y")
    canvas.rect(6, 13, 11, 19, "g")
    face(canvas, mood)
    for y in (20, 17, 14):
        canvas.disc(15, y, 1, 1, "y")
        canvas.dots([(16, y)], "o")


def fog_painter(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "g", "d")
    canvas.disc(7, 5, 5, 2, "b")
    canvas.dots([(7, 2)], "b")
    face(canvas, mood)
    canvas.disc(15, 18, 2, 3, "T")
    canvas.dots([(14, 17)], "r")
    canvas.dots([(16, 17)], "y")
    canvas.dots([(15, 19)], "b")
    canvas.dots([(6, 17), (10, 19), (7, 20)], "c")


def puddle_baron(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "t", long=True)
    canvas.rect(5, 5, 12, 7, "y")
    canvas.dots([(5, 4), (5, 3), (8, 4), (9, 3), (12, 4), (12, 3)], "y")
    canvas.dots([(8, 6)], "r")
    face(canvas, mood)
    canvas.rect(4, 15, 13, 16, "w")
    canvas.poly([(1, 24), (3, 16), (6, 16), (4, 24)], "c")
    canvas.poly([(17, 24), (15, 16), (12, 16), (14, 24)], "c")
    canvas.dots([(16, 13), (1, 14)], "c")


def button_knight(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "g", "m")
    canvas.rect(4, 5, 13, 8, "g")
    canvas.rect(4, 8, 4, 14, "g")
    canvas.rect(13, 8, 13, 14, "g")
    canvas.rect(8, 1, 9, 4, "r")
    canvas.dots([(10, 1), (11, 2)], "r")
    face(canvas, mood)
    canvas.disc(7, 17, 1, 1, "r")
    canvas.disc(11, 17, 1, 1, "b")
    canvas.disc(9, 20, 1, 1, "y")
    canvas.rect(15, 7, 15, 17, "w")
    canvas.rect(14, 17, 16, 17, "B")


def sock_detective(canvas: Canvas, mood: str) -> None:
    person(canvas, "S", "T", long=True)
    canvas.disc(8, 6, 4, 3, "B")
    canvas.rect(2, 7, 15, 7, "B")
    canvas.rect(6, 5, 11, 5, "T")
    face(canvas, mood)
    canvas.rect(8, 15, 8, 22, "B")
    for i, y in enumerate(range(12, 20, 2)):
        canvas.rect(14, y, 15, y + 1, "rw"[i % 2])
    canvas.rect(14, 20, 17, 21, "r")
