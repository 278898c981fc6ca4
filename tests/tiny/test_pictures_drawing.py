"""The drawing program draws every word of the grammar, each unlike the others, and the same picture every time."""

import hashlib
import random
from itertools import combinations

import numpy as np
import pytest

from refimpl.tiny import lexicon
from refimpl.tiny.lexicon import bare
from refimpl.tiny.pictures import STYLES as FOLDERS
from refimpl.tiny.pictures.corpus import draw_scenes, held_out
from refimpl.tiny.pictures.drawing.canvas import CLEAR, LETTERS, PALETTE, Canvas, outlined, sprite_of
from refimpl.tiny.pictures.drawing.scene import PLACES, ROLES, draw, goals
from refimpl.tiny.pictures.drawing.weather import SKIES
from refimpl.tiny.pictures.judge import CHOICES
from refimpl.tiny.pictures.styles import STYLES, plain

SCENE = {
    "place": "moth opera",
    "role": "frog lawyer",
    "goal": "golden fork",
    "mood": "sleepy",
    "weather": "Crows circle",
}


def test_every_word_of_the_grammar_has_a_drawing() -> None:
    assert list(PLACES) == [bare(place) for place in lexicon.PLACES]
    assert list(ROLES) == [bare(role) for role in lexicon.ROLES]
    assert list(goals()) == [bare(goal) for goal in lexicon.TREASURES]
    assert list(SKIES) == list(lexicon.WEATHERS)
    assert all(sprite.shape == (12, 12) for sprite in goals().values())


@pytest.mark.parametrize("word", CHOICES)
def test_every_word_is_seen(word: str) -> None:
    pictures = {value: draw(SCENE | {word: value}, 5, 0) for value in CHOICES[word]}
    assert all(picture.shape == (48, 48) and picture.max() < len(PALETTE) for picture in pictures.values())
    for (one, picture), (other, other_picture) in combinations(pictures.items(), 2):
        assert (picture != other_picture).sum() >= 4, (one, other)


def test_a_scene_is_drawn_the_same_on_every_machine() -> None:
    words = draw_scenes(3, 60)[1]
    pictures = np.stack([draw(scene_words, i) for i, scene_words in enumerate(words)])
    again = np.stack([draw(scene_words, i) for i, scene_words in enumerate(words)])
    assert (pictures == again).all()
    assert hashlib.sha256(pictures.tobytes()).hexdigest() == DIGEST, "the weights were trained on other drawings"


DIGEST = "7143580df3edc874db7477c94657112f06a88bb7fc3817a49c81dc2f2a70e934"


def test_the_seed_moves_what_the_words_leave_open() -> None:
    assert len({draw(SCENE, seed).tobytes() for seed in range(20)}) > 10
    near, far = draw(SCENE, 5, 1), draw(SCENE, 5, 0)
    assert (near != far)[:, 20:].any() and (near == far)[:, :20].all()


def test_the_training_scenes_hold_every_word_and_no_pair_that_is_tested() -> None:
    prompts, words = draw_scenes(1, 3000)
    assert not any(held_out(scene_words) for scene_words in words)
    for word, choices in CHOICES.items():
        assert {scene_words[word] for scene_words in words} == set(choices)
    test_prompts, test_words = draw_scenes(102, 300, from_held_out=True)
    assert all(held_out(scene_words) for scene_words in test_words)
    pairs = {(scene_words["place"], scene_words["role"]) for scene_words in words}
    assert not pairs & {(scene_words["place"], scene_words["role"]) for scene_words in test_words}
    assert not {*prompts} & {*test_prompts}


def test_a_prompt_names_what_its_picture_shows() -> None:
    for prompt, words in zip(*draw_scenes(7, 50), strict=True):
        assert prompt.startswith(words["weather"]) and prompt.endswith("\n")
        assert all(words[word] in prompt for word in ("place", "role", "goal"))
        assert any(adjective.split()[1] in prompt for adjective in lexicon.MOODS[words["mood"]])


@pytest.mark.parametrize("style", STYLES)
def test_a_style_redraws_every_word_differently(style: str) -> None:
    redraw = STYLES[style]
    original = redraw(draw(SCENE, 5, 0)).astype(int)
    assert original.shape == (48, 48, 3)
    assert np.abs(original - plain(draw(SCENE, 5, 0))).mean() > 20
    for word in ("place", "role", "goal"):
        for value in set(CHOICES[word]) - {SCENE[word]}:
            other = redraw(draw(SCENE | {word: value}, 5, 0)).astype(int)
            assert np.abs(original - other).sum() > 1000, value


def test_there_is_a_folder_for_every_style() -> None:
    assert list(FOLDERS) == list(STYLES)


def test_a_canvas_draws_both_ends_and_nothing_outside() -> None:
    canvas = Canvas(5, 4)
    canvas.rect(1, 1, 3, 2, "r")
    assert (canvas.pixels == LETTERS["r"]).sum() == 6 and canvas.pixels[0, 0] == CLEAR
    canvas.line(0, 3, 4, 3, "k")
    assert (canvas.pixels[3] == LETTERS["k"]).all()
    canvas.dots([(9, 9), (-1, 0), (4, 0)], "w")
    assert (canvas.pixels == LETTERS["w"]).sum() == 1
    canvas.paste(sprite_of("y.\n.y"), 4, -1)
    assert (canvas.pixels == LETTERS["y"]).sum() == 0  # what would be seen of it is clear
    canvas.paste(sprite_of("y.\n.y"), -1, 0)
    assert canvas.pixels[1, 0] == LETTERS["y"]
    canvas = Canvas(6, 6)
    canvas.poly([(1, 1), (5, 1), (5, 4), (1, 4)], "b")
    assert (canvas.pixels == LETTERS["b"]).sum() == 12


def test_an_outline_is_around_a_sprite_and_not_in_it() -> None:
    rng = random.Random(1)
    sprite = np.array([[rng.choice([CLEAR, 5, 6]) for _ in range(6)] for _ in range(7)], np.uint8)
    line = outlined(sprite, "k")
    assert line.shape == (9, 8)
    assert (line[1:-1, 1:-1][sprite != CLEAR] == sprite[sprite != CLEAR]).all()
    y, x = np.nonzero(line == LETTERS["k"])
    solid = np.pad(sprite, 2, constant_values=CLEAR) != CLEAR
    for i, j in zip(y + 1, x + 1, strict=True):
        assert not solid[i, j] and (solid[i - 1, j] or solid[i + 1, j] or solid[i, j - 1] or solid[i, j + 1])
