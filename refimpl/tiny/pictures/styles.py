"""How a style draws the same scene: index image -> RGB. "plain" is what the base learns, each other one is a LoRA."""

import numpy as np

from .canvas import LETTERS, PALETTE, SIZE

LUMA = PALETTE.astype(np.float64) @ (0.299, 0.587, 0.114)
Y, X = np.mgrid[:SIZE, :SIZE]


def mix(a, b, t):
    return np.asarray(a) * (1 - t) + np.asarray(b) * t


BLACK = LETTERS["k"]


def lines(a):
    """One pixel wide: the black outlines, and where two other colours meet."""
    rgb = PALETTE[a].astype(int)
    right = np.abs(np.diff(rgb, axis=1, append=rgb[:, -1:])).sum(-1)
    below = np.abs(np.diff(rgb, axis=0, append=rgb[-1:])).sum(-1)
    black = np.pad(a == BLACK, 1, constant_values=True)
    inside = black[1:-1, :-2] & black[1:-1, 2:] & black[:-2, 1:-1] & black[2:, 1:-1]  # of a black area
    touches = black[1:-1, 1:-1] | black[1:-1, 2:] | black[2:, 1:-1]
    return (black[1:-1, 1:-1] & ~inside) | ((np.maximum(right, below) > 110) & ~touches)


def plain(a):
    return PALETTE[a]


def ink(a):
    """A pen on cream paper: outlines, three kinds of hatching, and one red."""
    paper, pen, red = (244, 232, 204), (52, 38, 34), (190, 52, 44)
    tone = LUMA[a]
    out = np.empty((SIZE, SIZE, 3))
    out[:] = paper
    every = np.select([tone < 45, tone < 85, tone < 140, tone < 180], [1, 2, 3, 6], 99)
    hatched = (X + Y) % every == 0
    out[hatched] = mix(pen, paper, 0.35)
    reds = np.isin(a, [LETTERS[ch] for ch in "r"])
    out[reds] = red
    out[lines(a)] = pen
    return out.astype(np.uint8)


def _night_palette():
    rgb = PALETTE.astype(float)
    luma = LUMA[:, None] / 255
    cold = mix((8, 10, 34), (96, 122, 190), luma ** 1.1)
    out = mix(cold, rgb * 0.5, 0.22)
    for ch, glow in {"y": (255, 214, 96), "o": (238, 134, 50), "w": (196, 206, 240), "%": (60, 60, 110), "&": (76, 78, 130), "5": (98, 62, 110), "6": (66, 40, 92)}.items():
        out[LETTERS[ch]] = glow
    return out.astype(np.uint8)


NIGHT = _night_palette()


def night(a):
    """After dark: everything is blue, and what is yellow shines on its neighbours."""
    out = NIGHT[a].astype(float)
    lamp = np.isin(a, [LETTERS["y"], LETTERS["o"]]).astype(float)
    glow = np.zeros_like(lamp)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            shifted = np.zeros_like(lamp)
            shifted[max(dy, 0) : SIZE + min(dy, 0), max(dx, 0) : SIZE + min(dx, 0)] = lamp[max(-dy, 0) : SIZE + min(-dy, 0), max(-dx, 0) : SIZE + min(-dx, 0)]
            glow = np.maximum(glow, shifted * (1 - 0.27 * np.hypot(dy, dx)))
    glow = np.clip(glow, 0, 1) * (lamp == 0)
    return np.clip(out + glow[..., None] * np.array((90, 60, 10)), 0, 255).astype(np.uint8)


def blueprint(a):
    """White lines on blue squared paper."""
    tone = LUMA[a] / 255
    out = mix((20, 58, 132), (64, 116, 196), tone[..., None] * np.ones(3))
    out[(X % 6 == 0) | (Y % 6 == 0)] += (14, 16, 18)
    out[lines(a)] = (226, 238, 252)
    return np.clip(out, 0, 255).astype(np.uint8)


_grain = np.random.default_rng(5).normal(0, 5, (SIZE, SIZE, 1))


def watercolour(a):
    """Thin wet paint: pale, bled into its neighbours, white at the rim of the sheet."""
    rgb = PALETTE[a].astype(float)
    padded = np.pad(rgb, ((2, 2), (2, 2), (0, 0)), mode="edge")
    weights = np.array([1, 3, 4, 3, 1]) / 12
    blurred = sum(w * padded[i : i + SIZE] for i, w in enumerate(weights))
    blurred = sum(w * blurred[:, i : i + SIZE] for i, w in enumerate(weights))
    soft = mix(rgb, blurred, 0.75)
    washed = mix(soft, (252, 246, 234), 0.38) + _grain
    rim = np.minimum.reduce([X, Y, SIZE - 1 - X, SIZE - 1 - Y]) + (X * 7 + Y * 5) % 3 * 0.7
    t = np.clip((3.0 - rim) / 2.0, 0, 1)[..., None]
    return np.clip(washed * (1 - t) + np.array((252, 246, 234)) * t, 0, 255).astype(np.uint8)


GAMEBOY = np.array([(24, 56, 40), (60, 110, 62), (136, 180, 60), (212, 232, 140)], np.uint8)
BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16


def handheld(a):
    """Four greens and a dither."""
    t = LUMA[a] / 255 * 3.4 - 0.2
    level = np.floor(t + (BAYER[Y % 2, X % 2] / 0.8 * 0.9)).clip(0, 3).astype(int)
    return GAMEBOY[level]


STYLES = {"plain": plain, "ink": ink, "night": night, "blueprint": blueprint, "watercolour": watercolour, "handheld": handheld}
