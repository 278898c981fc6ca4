"""What does a picture show? Judged by drawing the alternatives: nothing here was trained.

For one word of the prompt at a time, the picture is compared with drawings of the scene and of the scenes that differ
from it in that word alone, with the character in both positions and several seeds for what the words leave open. The
nearest drawing, by the mean squared difference of all pixels, says which word the picture shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refimpl.arrays import Array, Float, Int
from refimpl.tiny import lexicon

from .drawing.scene import PLACES, ROLES, Words, draw, goals
from .drawing.weather import SKIES
from .styles import STYLES, Picture, Redraw, plain

SEEDS = (901, 902)  # of the drawings that a picture is compared with; more would judge rain and stars more surely

CHOICES: dict[str, tuple[str, ...]] = {
    "place": tuple(PLACES),
    "role": tuple(ROLES),
    "goal": tuple(goals()),
    "mood": tuple(lexicon.MOODS),
    "weather": tuple(SKIES),
}
CONTENT = ("place", "role", "goal")  # what must be right in a picture whose content is right
ALL_STYLES: dict[str, Redraw] = {"base": plain} | STYLES


@dataclass(frozen=True)
class Verdict:
    """What one picture shows, beside what it should show."""

    expected: Mapping[str, str]  # the five words, and the style
    shown: Mapping[str, str]
    distance: float  # rms difference to the nearest drawing of the right scene in the right style, of 255

    def right(self, *words: str) -> bool:
        """Are these words (the style is one) what the picture shows?"""
        return all(self.shown[word] == self.expected[word] for word in words)


def judge(rgb: Int[Array, "48 48 3"], words: Words, style: str = "base") -> Verdict:
    """Compare a picture with what its prompt and its adapter asked for; style "base" is that of no adapter."""
    shown = {word: nearest_word(rgb, words, word, style) for word in CHOICES}
    by_style = {name: nearest_distance(rgb, words, name) for name in ALL_STYLES}
    shown["style"] = min(by_style, key=by_style.__getitem__)
    return Verdict({**words, "style": style}, shown, by_style[style] ** 0.5)


def nearest_word(rgb: Int[Array, "48 48 3"], words: Words, word: str, style: str) -> str:
    """The value of one word whose drawing is nearest to the picture."""
    by_value = {value: nearest_distance(rgb, words | {word: value}, style) for value in CHOICES[word]}
    return min(by_value, key=by_value.__getitem__)


def nearest_distance(rgb: Int[Array, "48 48 3"], words: Words, style: str) -> float:
    """The mean squared difference to the nearest drawing of a scene, over steps and seeds."""
    differences = drawings(words, style) - rgb
    return float(np.square(differences).mean((1, 2, 3)).min())


def drawings(words: Words, style: str) -> Float[Array, "drawings 48 48 3"]:
    """Every drawing of a scene that a picture is compared with."""
    pictures: list[Picture] = [draw(words, seed, steps) for seed in SEEDS for steps in (0, 1)]
    return np.stack([ALL_STYLES[style](picture) for picture in pictures]).astype(np.float32)
