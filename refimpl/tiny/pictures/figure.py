"""Figures: a body and a face."""

from .canvas import Canvas

W, H = 18, 24


def person(c, skin, body, legs="k", long=False):
    c.rect(5, 15, 12, 21, body)
    c.rect(4, 16, 13, 18, body)
    if long:
        c.poly([(5, 17), (13, 17), (15, 24), (3, 24)], body)
    else:
        c.rect(5, 20, 7, 23, legs)
        c.rect(10, 20, 12, 23, legs)
    c.rect(3, 16, 3, 19, skin)
    c.rect(14, 16, 14, 19, skin)
    c.rect(5, 8, 12, 14, skin)
    c.rect(6, 7, 11, 14, skin)


def face(c, mood, x=5, y=8, ink="k"):
    """Two eyes and a mouth in an area of 8 x 7."""
    left, right = x + 2, x + 5
    if mood == "grumpy":
        c.dots([(left - 1, y + 1), (left, y + 2), (right + 1, y + 1), (right, y + 2)], ink)
        c.dots([(left, y + 3), (right, y + 3)], ink)
        c.dots([(left, y + 6), (left + 1, y + 5), (right - 1, y + 5), (right, y + 6)], ink)
    elif mood == "cheerful":
        c.dots([(left, y + 2), (right, y + 2)], ink)
        c.dots([(left - 1, y + 4), (right + 1, y + 4)], ink)
        c.rect(left, y + 5, right, y + 5, ink)
        c.rect(left + 1, y + 5, right - 1, y + 5, "r")
    elif mood == "sleepy":
        c.rect(left - 1, y + 3, left, y + 3, ink)
        c.rect(right, y + 3, right + 1, y + 3, ink)
        c.rect(left + 1, y + 5, right - 1, y + 6, ink)
    elif mood == "nervous":
        c.rect(left - 1, y + 1, left, y + 3, "w")
        c.rect(right, y + 1, right + 1, y + 3, "w")
        c.dots([(left, y + 2), (right, y + 2)], ink)
        c.dots([(left, y + 5), (left + 1, y + 6), (right - 1, y + 5), (right, y + 6)], ink)
        c.dots([(x + 8, y), (x + 8, y + 1)], "c")
    elif mood == "pompous":
        c.rect(left - 1, y + 1, left, y + 1, ink)
        c.rect(right, y + 1, right + 1, y + 1, ink)
        c.dots([(left, y + 2), (right, y + 2)], ink)
        c.dots([(left - 1, y + 4), (right + 1, y + 4)], "P")
        c.rect(left + 1, y + 5, right, y + 5, ink)

