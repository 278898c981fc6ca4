"""Weather: two sky colours, and what falls or flies."""

import numpy as np

from .canvas import Canvas

SKIES = {
    "Fog curls around": "90", "Rain drums on": "34", "Snow falls on": "40", "Smoke drifts past": "*+",
    "Crows circle": "2&", "A warm wind shakes": "%&", "Bats flutter over": '!"', "Thunder rolls over": "#$",
    "The sun sets behind": "65", "Mist hides": "02", "Crickets chirp near": "()", "Stars blink above": "78",
}  # fmt: skip


def sky(c: Canvas, weather: str, rng: np.random.Generator) -> None:
    upper, lower = SKIES[weather]
    c.rect(0, 0, 47, 47, upper)
    c.rect(0, 18, 47, 47, lower)
    for x in range(0, 48, 2):
        c.dots([(x, 17), (x + 1, 19)], lower if x % 4 else upper)
    if weather == "The sun sets behind":
        c.disc(24, 18, 6, 6, "y")
        c.rect(0, 25, 47, 26, "o")
    elif weather == "Stars blink above":
        for _ in range(12):
            c.dots([(int(rng.integers(48)), int(rng.integers(26)))], rng.choice(["w", "y"]))
        c.disc(41, 5, 3, 3, "C")
        c.disc(43, 4, 2, 2, "7")
    elif weather in ("Crows circle", "Bats flutter over"):
        for _ in range(4):
            x, y = int(rng.integers(18, 44)), int(rng.integers(1, 12))
            c.dots([(x, y), (x + 1, y + 1), (x + 2, y), (x + 3, y + 1), (x + 4, y)], "k")
            if weather[0] == "B":
                c.dots([(x + 1, y), (x + 3, y), (x + 2, y + 1)], "k")
    elif weather == "Thunder rolls over":
        for x in range(14, 50, 8):
            c.disc(x, 1, 6, 3, "d")
        x = int(rng.integers(18, 44))
        c.poly([(x, 3), (x + 4, 3), (x + 2, 8), (x + 5, 8), (x - 2, 17), (x, 10), (x - 3, 10)], "y")
    elif weather in ("Fog curls around", "Mist hides", "Smoke drifts past", "A warm wind shakes"):
        colour = {"F": "w", "M": "w", "S": "m", "A": "w"}[weather[0]]
        for y in (3, 10, 17, 24):
            x = int(rng.integers(-6, 24))
            c.rect(x, y, x + 16, y, colour)
            c.rect(x + 20, y + 2, x + 34, y + 2, colour)


def falling(c: Canvas, weather: str, rng: np.random.Generator) -> None:
    """What is in front of everything."""
    if weather == "Rain drums on":
        for _ in range(16):
            x, y = int(rng.integers(48)), int(rng.integers(44))
            c.dots([(x, y), (x, y + 1), (x - 1, y + 2)], "s")
    elif weather == "Snow falls on":
        for _ in range(22):
            c.dots([(int(rng.integers(48)), int(rng.integers(46)))], "w")
        c.rect(0, 46, 47, 47, "w")
    elif weather == "Crickets chirp near":
        for _ in range(5):
            c.dots([(int(rng.integers(14, 30)), int(rng.integers(37, 47)))], "y")
    elif weather in ("Fog curls around", "Mist hides"):
        x = int(rng.integers(-4, 10))
        for y in (35, 37):
            c.rect(x + 8, y, x + 24, y, "0")

