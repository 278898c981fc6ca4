"""What every character has: a body, and a face that shows the mood. The head is at x 5 to 12, y 8 to 14."""

from .canvas import Canvas

WIDTH, HEIGHT = 18, 24  # pixels of a character; the feet are at the bottom


def person(canvas: Canvas, skin: str, body: str, legs: str = "k", *, long: bool = False) -> None:
    """A body with arms, a head, and legs or a long robe."""
    canvas.rect(5, 15, 12, 21, body)
    canvas.rect(4, 16, 13, 18, body)
    if long:
        canvas.poly([(5, 17), (13, 17), (15, 24), (3, 24)], body)
    else:
        canvas.rect(5, 20, 7, 23, legs)
        canvas.rect(10, 20, 12, 23, legs)
    canvas.rect(3, 16, 3, 19, skin)
    canvas.rect(14, 16, 14, 19, skin)
    canvas.rect(5, 8, 12, 14, skin)
    canvas.rect(6, 7, 11, 14, skin)


def face(canvas: Canvas, mood: str, x: int = 5, y: int = 8, ink: str = "k") -> None:
    """Two eyes and a mouth in an area of 8 x 7, in one of the five moods."""
    left_eye, right_eye = x + 2, x + 5
    if mood == "grumpy":
        canvas.dots([(left_eye - 1, y + 1), (left_eye, y + 2), (right_eye + 1, y + 1), (right_eye, y + 2)], ink)
        canvas.dots([(left_eye, y + 3), (right_eye, y + 3)], ink)
        canvas.dots([(left_eye, y + 6), (left_eye + 1, y + 5), (right_eye - 1, y + 5), (right_eye, y + 6)], ink)
    elif mood == "cheerful":
        canvas.dots([(left_eye, y + 2), (right_eye, y + 2)], ink)
        canvas.dots([(left_eye - 1, y + 4), (right_eye + 1, y + 4)], ink)
        canvas.rect(left_eye, y + 5, right_eye, y + 5, ink)
        canvas.rect(left_eye + 1, y + 5, right_eye - 1, y + 5, "r")
    elif mood == "sleepy":
        canvas.rect(left_eye - 1, y + 3, left_eye, y + 3, ink)
        canvas.rect(right_eye, y + 3, right_eye + 1, y + 3, ink)
        canvas.rect(left_eye + 1, y + 5, right_eye - 1, y + 6, ink)
    elif mood == "nervous":
        canvas.rect(left_eye - 1, y + 1, left_eye, y + 3, "w")
        canvas.rect(right_eye, y + 1, right_eye + 1, y + 3, "w")
        canvas.dots([(left_eye, y + 2), (right_eye, y + 2)], ink)
        canvas.dots([(left_eye, y + 5), (left_eye + 1, y + 6), (right_eye - 1, y + 5), (right_eye, y + 6)], ink)
        canvas.dots([(x + 8, y), (x + 8, y + 1)], "c")
    elif mood == "pompous":
        canvas.rect(left_eye - 1, y + 1, left_eye, y + 1, ink)
        canvas.rect(right_eye, y + 1, right_eye + 1, y + 1, ink)
        canvas.dots([(left_eye, y + 2), (right_eye, y + 2)], ink)
        canvas.dots([(left_eye - 1, y + 4), (right_eye + 1, y + 4)], "P")
        canvas.rect(left_eye + 1, y + 5, right_eye, y + 5, ink)
