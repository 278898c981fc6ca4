"""Scenes -> what a picture model is trained on: a prompt's hidden states in the embedded text model, and the picture.

One pair of place and character in seven is in no training picture; those are what the model is tested on.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refimpl import load_model
from refimpl.pictures import read_captions
from refimpl.tiny import base_path, grammar, lexicon
from refimpl.tiny.lexicon import bare

from .drawing.scene import PLACES, ROLES, Words, draw

CAPTION_TOKENS = 32  # a caption is padded to this; the longest prompt of the grammar has 31
CAPTION_WIDTH = 256  # the text model's hidden_size
TRAIN_SEED, TRAIN_SCENES = 1, 24_576
UNSEEN_SEED, SHEET_SEED = 102, 202  # looked at while the recipe was made
FRESH_SEED = 404  # looked at once, when all was done
READ_AT_ONCE = 64  # prompts in one forward pass of the text model

_MOOD_OF = {adjective: mood for mood, adjectives in lexicon.MOODS.items() for adjective in adjectives}
_PLACES, _ROLES = list(PLACES), list(ROLES)


@dataclass(frozen=True)
class Corpus:
    """Scenes with their captions and pictures; one row each.

    pictures  [scenes, 48, 48] uint8, indices into the palette
    captions  [scenes, 32, 256] float16, zero behind the prompt's end
    lengths   [scenes] how many tokens the prompt has
    """

    prompts: tuple[str, ...]
    words: tuple[Words, ...]
    pictures: np.ndarray
    captions: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.prompts)


def words_of(slots: grammar.Slots) -> Words:
    """The five words that a picture shows of a scene."""
    return {
        "place": bare(slots["place"]),
        "role": bare(slots["role"]),
        "goal": bare(slots["goal"]),
        "mood": _MOOD_OF[slots["mood"]],
        "weather": slots["weather"],
    }


def held_out(words: Words) -> bool:
    """Is this pair of place and character kept out of every training picture? One in seven is."""
    return (3 * _PLACES.index(words["place"]) + _ROLES.index(words["role"])) % 7 == 0


def draw_scenes(seed: int, count: int, *, from_held_out: bool = False) -> tuple[list[str], list[Words]]:
    """Prompts (each ends with a line break, as the text model expects) and the words of their pictures."""
    rng = random.Random(seed)
    prompts: list[str] = []
    words: list[Words] = []
    while len(prompts) < count:
        slots = grammar.draw_slots(rng, from_held_out=from_held_out)
        if held_out(words_of(slots)) == from_held_out:
            prompts.append(f"{grammar.write_prompt(slots)}\n")
            words.append(words_of(slots))
    return prompts, words


def padded_captions(prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The text model's hidden states of each prompt: [prompts, 32, 256] float16 and [prompts] lengths."""
    model = load_model(base_path())
    captions = np.zeros((len(prompts), CAPTION_TOKENS, CAPTION_WIDTH), np.float16)
    lengths = np.zeros(len(prompts), np.int64)
    for start in range(0, len(prompts), READ_AT_ONCE):
        for i, hidden in enumerate(read_captions(model, prompts[start : start + READ_AT_ONCE]), start):
            captions[i, : len(hidden)] = hidden
            lengths[i] = len(hidden)
    return captions, lengths


def make_corpus(seed: int, count: int, *, from_held_out: bool = False) -> Corpus:
    """Draw scenes, read their prompts and draw their pictures. The same seed gives the same corpus."""
    prompts, words = draw_scenes(seed, count, from_held_out=from_held_out)
    captions, lengths = padded_captions(prompts)
    pictures = np.stack([draw(scene_words, seed * 1_000_003 + i) for i, scene_words in enumerate(words)])
    return Corpus(tuple(prompts), tuple(words), pictures, captions, lengths)
