"""Weather: two sky colours, what flies behind the place and what falls in front of it."""

from collections.abc import Callable

import numpy as np

from .canvas import Canvas

Random = np.random.Generator

# What it does -> the upper and the lower colour of the sky, a letter each.
SKIES = {
    "Fog curls around": "90", "Rain drums on": "34", "Snow falls on": "40", "Smoke drifts past": "*+",
    "Crows circle": "2&", "A warm wind shakes": "%&", "Bats flutter over": '!"', "Thunder rolls over": "#$",
    "The sun sets behind": "65", "Mist hides": "02", "Crickets chirp near": "()", "Stars blink above": "78",
}  # fmt: skip


def sky(canvas: Canvas, weather: str, rng: Random) -> None:
    """What is behind everything."""
    upper, lower = tuple(SKIES[weather])
    canvas.rect(0, 0, 47, 47, upper)
    canvas.rect(0, 18, 47, 47, lower)
    for x in range(0, 48, 2):
        canvas.dots([(x, 17), (x + 1, 19)], lower if x % 4 else upper)
    if weather in BEHIND:
        BEHIND[weather](canvas, rng)


def falling(canvas: Canvas, weather: str, rng: Random) -> None:
    """What is in front of everything."""
    if weather in BEFORE:
        BEFORE[weather](canvas, rng)


def setting_sun(canvas: Canvas, rng: Random) -> None:
    """A sun whose lower edge is already orange."""
    canvas.disc(24, 18, 6, 6, "y")
    canvas.rect(0, 25, 47, 26, "o")


def stars_and_moon(canvas: Canvas, rng: Random) -> None:
    """Twelve stars and a crescent."""
    for _ in range(12):
        canvas.dots([(int(rng.integers(48)), int(rng.integers(26)))], rng.choice(["w", "y"]))
    canvas.disc(41, 5, 3, 3, "C")
    canvas.disc(43, 4, 2, 2, "7")


def birds(canvas: Canvas, rng: Random) -> list[tuple[int, int]]:
    """Four pairs of wings; returns where."""
    positions = []
    for _ in range(4):
        x, y = int(rng.integers(18, 44)), int(rng.integers(1, 12))
        canvas.dots([(x, y), (x + 1, y + 1), (x + 2, y), (x + 3, y + 1), (x + 4, y)], "k")
        positions.append((x, y))
    return positions


def bats(canvas: Canvas, rng: Random) -> None:
    """Birds with thicker wings."""
    for x, y in birds(canvas, rng):
        canvas.dots([(x + 1, y), (x + 3, y), (x + 2, y + 1)], "k")


def thunder(canvas: Canvas, rng: Random) -> None:
    """Clouds and a lightning."""
    for x in range(14, 50, 8):
        canvas.disc(x, 1, 6, 3, "d")
    x = int(rng.integers(18, 44))
    canvas.poly([(x, 3), (x + 4, 3), (x + 2, 8), (x + 5, 8), (x - 2, 17), (x, 10), (x - 3, 10)], "y")


def streaks(colour: str) -> Callable[[Canvas, Random], None]:
    """Long thin clouds of a colour."""

    def draw(canvas: Canvas, rng: Random) -> None:
        for y in (3, 10, 17, 24):
            x = int(rng.integers(-6, 24))
            canvas.rect(x, y, x + 16, y, colour)
            canvas.rect(x + 20, y + 2, x + 34, y + 2, colour)

    return draw


def rain(canvas: Canvas, rng: Random) -> None:
    """Sixteen slanting drops."""
    for _ in range(16):
        x, y = int(rng.integers(48)), int(rng.integers(44))
        canvas.dots([(x, y), (x, y + 1), (x - 1, y + 2)], "s")


def snow(canvas: Canvas, rng: Random) -> None:
    """Flakes, and what has fallen already."""
    for _ in range(22):
        canvas.dots([(int(rng.integers(48)), int(rng.integers(46)))], "w")
    canvas.rect(0, 46, 47, 47, "w")


def crickets(canvas: Canvas, rng: Random) -> None:
    """Five dots on the ground."""
    for _ in range(5):
        canvas.dots([(int(rng.integers(14, 30)), int(rng.integers(37, 47)))], "y")


def ground_fog(canvas: Canvas, rng: Random) -> None:
    """Two lines over the ground."""
    x = int(rng.integers(-4, 10))
    for y in (35, 37):
        canvas.rect(x + 8, y, x + 24, y, "0")


BEHIND: dict[str, Callable[[Canvas, Random], object]] = {
    "The sun sets behind": setting_sun,
    "Stars blink above": stars_and_moon,
    "Crows circle": birds,
    "Bats flutter over": bats,
    "Thunder rolls over": thunder,
    "Fog curls around": streaks("w"),
    "Mist hides": streaks("w"),
    "Smoke drifts past": streaks("m"),
    "A warm wind shakes": streaks("w"),
}

BEFORE: dict[str, Callable[[Canvas, Random], object]] = {
    "Rain drums on": rain,
    "Snow falls on": snow,
    "Crickets chirp near": crickets,
    "Fog curls around": ground_fog,
    "Mist hides": ground_fog,
}
