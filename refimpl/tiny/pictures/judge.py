"""What does a picture show? Judged by drawing the alternatives: nothing here was trained.

For one word of the prompt at a time, the picture is compared with drawings of the scene and of the scenes that differ
from it in that word alone, with the character in both positions and, for the weather, several seeds for its drops and
stars. The nearest drawing, by the mean squared difference of all pixels, says which word the picture shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.arrays import Array, Int
from refimpl.tiny import lexicon

from .drawing.scene import PLACES, ROLES, Words, draw, goals
from .drawing.weather import SKIES
from .styles import STYLES, Redraw, plain

SEEDS = (901, 902, 903)  # of the drawings that a picture is compared with; more judge rain and stars more surely

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
    shown["style"] = nearest_style(rgb, words, shown)
    return Verdict({**words, "style": style}, shown, nearest_distance(rgb, words, style, SEEDS) ** 0.5)


def nearest_word(rgb: Int[Array, "48 48 3"], words: Words, word: str, style: str) -> str:
    """The value of one word whose drawing is nearest to the picture."""
    seeds = SEEDS if word == "weather" else SEEDS[:1]
    by_value = {value: nearest_distance(rgb, words | {word: value}, style, seeds) for value in CHOICES[word]}
    return min(by_value, key=by_value.__getitem__)


def nearest_style(rgb: Int[Array, "48 48 3"], *scenes: Words) -> str:
    """The style ("base" is one) whose drawing of one of the scenes is nearest to the picture.

    Of what it should show, and of what it does: a wrong place alone must not look like a wrong style."""
    by_style = {style: min(nearest_distance(rgb, words, style) for words in scenes) for style in ALL_STYLES}
    return min(by_style, key=by_style.__getitem__)


def nearest_distance(rgb: Int[Array, "48 48 3"], words: Words, style: str, seeds: Sequence[int] = SEEDS[:1]) -> float:
    """The mean squared difference to the nearest drawing of a scene, over both positions and the seeds."""
    pictures = [draw(words, seed, steps) for seed in seeds for steps in (0, 1)]
    drawings = np.stack([ALL_STYLES[style](picture) for picture in pictures]).astype(np.float32)
    return float(np.square(drawings - rgb).mean((1, 2, 3)).min())
