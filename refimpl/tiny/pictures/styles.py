"""Four ways to redraw a picture: what the adapters learn. Palette indices [48, 48] -> RGB [48, 48, 3], uint8."""

from collections.abc import Callable

import numpy as np

from refimpl.arrays import Array, Float, Int

from .drawing.canvas import LETTERS, PALETTE, SIZE

Picture = Int[Array, "48 48"]
Rgb = Int[Array, "48 48 3"]
Redraw = Callable[[Picture], Rgb]

LUMA = PALETTE.astype(np.float64) @ (0.299, 0.587, 0.114)  # brightness of each colour, 0 to 255
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE]
BLACK = LETTERS["k"]
TONES = (60, 110, 160, 210)  # brightness at which the ink becomes lighter
WASHES = (0.72, 0.5, 0.3, 0.14, 0.0)  # how much of the pen's colour, from dark to light
HATCH_EVERY = (2, 3, 6, 99, 99)  # pixels between two lines; divisors of 6, so that every patch is hatched alike


def mix(start: np.ndarray | tuple, end: np.ndarray | tuple, share: np.ndarray | float) -> np.ndarray:
    """`share` of the way from one colour to another; arrays of colours too."""
    return np.asarray(start) * (1 - share) + np.asarray(end) * share


def plain(picture: Picture) -> Rgb:
    """The palette's colours: what the base learns."""
    return PALETTE[picture]


def ink(picture: Picture) -> Rgb:
    """A pen on cream paper: black outlines, washes of four tones, hatched the closer the darker, one red."""
    paper, pen, red = (244, 232, 204), (46, 32, 30), (196, 48, 42)
    level = np.digitize(LUMA[picture], TONES)  # 0 dark to 4 light
    out = mix(paper, pen, np.array(WASHES)[level][..., None])
    hatched = (COLUMNS + ROWS) % np.array(HATCH_EVERY)[level] == 0
    out[hatched] = mix(out[hatched], pen, 0.35)
    out[picture == LETTERS["r"]] = red
    out[picture == BLACK] = pen
    return out.astype(np.uint8)


def _night_palette() -> np.ndarray:
    """Every colour after dark; lamps stay warm, and bright skies turn dark."""
    luma = LUMA[:, None] / 255
    cold = mix((8, 10, 34), (96, 122, 190), luma**1.1)
    palette = mix(cold, PALETTE.astype(float) * 0.5, 0.22)
    lamps = {"y": (255, 214, 96), "o": (238, 134, 50), "w": (196, 206, 240)}
    skies = {"%": (60, 60, 110), "&": (76, 78, 130), "5": (98, 62, 110), "6": (66, 40, 92)}
    for letter, colour in (lamps | skies).items():
        palette[LETTERS[letter]] = colour
    return palette.astype(np.uint8)


NIGHT = _night_palette()


def night(picture: Picture) -> Rgb:
    """After dark: everything is blue, and what is yellow or orange shines on its neighbours."""
    lamp = np.isin(picture, [LETTERS["y"], LETTERS["o"]])
    padded = np.pad(lamp.astype(float), 2)
    glow = np.zeros((SIZE, SIZE))
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            shifted = padded[2 - dy : 2 - dy + SIZE, 2 - dx : 2 - dx + SIZE]
            glow = np.maximum(glow, shifted * (1 - 0.27 * np.hypot(dy, dx)))
    light = np.where(lamp, 0, np.clip(glow, 0, 1))[..., None] * (90, 60, 10)
    return np.clip(NIGHT[picture] + light, 0, 255).astype(np.uint8)


def blueprint(picture: Picture) -> Rgb:
    """A blueprint of the same tones: from deep blue to the white of its lines, on squared paper."""
    out = mix((10, 32, 100), (226, 238, 255), (LUMA[picture] / 255)[..., None] ** 1.2)
    out[(COLUMNS % 6 == 0) | (ROWS % 6 == 0)] += (16, 18, 20)
    return np.clip(out, 0, 255).astype(np.uint8)


GRAIN = np.random.default_rng(5).normal(0, 5, (SIZE, SIZE, 1))  # of the paper, the same for every picture
WHITE = (252, 246, 234)


def blurred(rgb: Float[Array, "48 48 3"]) -> Float[Array, "48 48 3"]:
    """A small binomial blur, both ways."""
    padded = np.pad(rgb, ((2, 2), (2, 2), (0, 0)), mode="edge")
    weights = np.array([1, 3, 4, 3, 1]) / 12
    rows = sum(weight * padded[i : i + SIZE] for i, weight in enumerate(weights))
    return sum(weight * rows[:, i : i + SIZE] for i, weight in enumerate(weights))


def watercolour(picture: Picture) -> Rgb:
    """Thin wet paint: pale, bled into its neighbours, white at the rim of the sheet."""
    rgb = PALETTE[picture].astype(float)
    washed = mix(mix(rgb, blurred(rgb), 0.75), WHITE, 0.38) + GRAIN
    rim = np.minimum.reduce([COLUMNS, ROWS, SIZE - 1 - COLUMNS, SIZE - 1 - ROWS])
    ragged = rim + (COLUMNS * 7 + ROWS * 5) % 3 * 0.7
    return np.clip(mix(washed, WHITE, np.clip((3.0 - ragged) / 2.0, 0, 1)[..., None]), 0, 255).astype(np.uint8)


STYLES: dict[str, Redraw] = {
    "ink": ink,
    "night": night,
    "blueprint": blueprint,
    "watercolour": watercolour,
}
