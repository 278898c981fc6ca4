"""The judge says what a drawn picture shows, in every style, and does not say it of another picture."""

from itertools import pairwise

import numpy as np
import pytest

from refimpl.tiny.pictures.corpus import draw_scenes
from refimpl.tiny.pictures.drawing.scene import Words, draw
from refimpl.tiny.pictures.judge import ALL_STYLES, CHOICES, CONTENT, judge, nearest_style, nearest_word

SCENES = draw_scenes(55, 12)[1]
NOISE = np.random.default_rng(0)


def noisy(rgb: np.ndarray, level: float) -> np.ndarray:
    """The picture with noise of a standard deviation of `level`, of 255."""
    return np.clip(rgb + NOISE.normal(0, level, rgb.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("style", ALL_STYLES)
def test_it_recognises_a_noisy_drawing(style: str) -> None:
    words = SCENES[[*ALL_STYLES].index(style)]
    verdict = judge(noisy(ALL_STYLES[style](draw(words, 17)), 25), words, style)
    assert verdict.right(*CONTENT, "mood", "style"), verdict.shown
    assert verdict.distance < 45


@pytest.mark.parametrize("word", CONTENT)
def test_a_wrong_word_is_seen_in_the_word_that_it_is(word: str) -> None:
    for i, words in enumerate(SCENES[2:4]):
        other = next(value for value in CHOICES[word][3 * i :] if value != words[word])
        verdict = judge(draw_rgb(words | {word: other}, 21), words)
        assert verdict.shown[word] == other and not verdict.right(word)
        assert verdict.right(*(set(CONTENT) - {word}), "style")


def draw_rgb(words: Words, seed: int, style: str = "base") -> np.ndarray:
    return ALL_STYLES[style](draw(words, seed))


def test_a_wrong_style_is_seen() -> None:
    for style in ALL_STYLES:
        for i, words in enumerate(SCENES[:2]):
            assert nearest_style(draw_rgb(words, i, style), words) == style
    verdict = judge(draw_rgb(SCENES[5], 3, "night"), SCENES[5], "ink")
    assert verdict.shown["style"] == "night" and not verdict.right("style")


def test_a_picture_of_another_scene_is_not_that_of_the_prompt() -> None:
    right = 0
    for asked_for, shown in pairwise(SCENES[:5]):
        picture = draw_rgb(shown, 4)
        for word in CONTENT:
            if shown[word] != asked_for[word]:
                right += nearest_word(picture, asked_for, word, "base") == asked_for[word]
    assert right <= 1  # of 12: at random it would be right once in 24 times


def test_noise_shows_nothing() -> None:
    pictures = NOISE.integers(0, 256, (2, 48, 48, 3)).astype(np.uint8)
    verdicts = [judge(picture, words) for picture, words in zip(pictures, SCENES[:2], strict=True)]
    assert sum(verdict.right(*CONTENT) for verdict in verdicts) == 0
    assert min(verdict.distance for verdict in verdicts) > 60
