"""A scene in five words -> a 48 x 48 picture, as indices into the palette.

Every picture is set alike. Behind, a sky that says what the weather does, and the place. In front, on the left, the
traveller, who thinks of the treasure; on the right the character, whose clothes say what it is and whose face its mood.
"""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

from refimpl.arrays import Array, Int
from refimpl.tiny import lexicon
from refimpl.tiny.lexicon import bare

from . import creatures, houses, humans, landmarks
from .canvas import Canvas, outlined, sprite_of
from .figure import HEIGHT, WIDTH
from .weather import falling, sky

Words = dict[str, str]  # place, role, goal, mood, weather: as the lexicon has them, without articles


def _by_word(things: Iterable[str], *modules: ModuleType) -> dict[str, Callable]:
    """A drawing function for each word of a list: "a toad museum" is drawn by toad_museum."""
    functions = {name: function for module in modules for name, function in vars(module).items()}
    return {bare(thing): functions[bare(thing).replace(" ", "_")] for thing in things}


PLACES = _by_word(lexicon.PLACES, houses, landmarks)
ROLES = _by_word(lexicon.ROLES, creatures, humans)

TRAVELLER = sprite_of("""
...DDD....
..DDDDD...
.DDDDDDDD.
..SSSSS...
..SkSkS..T
..SSSSS..T
...SSS...T
.rrrrrrr.T
rrDDDDD.rT
.rDDDDD..T
..DDDDDSST
..DDTDD..T
..DDDDD..T
..BB.BB..T
..BB.BB..T
""")


def draw(words: Words, seed: int, steps_nearer: int | None = None) -> Int[Array, "48 48"]:
    """Draw a scene.

    The seed moves what the words leave open: drops, stars and birds, and whether the character has come a step nearer
    to the traveller, which `steps_nearer` (0 or 1) can decide instead."""
    rng = np.random.default_rng(seed)
    random_steps = int(rng.integers(2))
    steps = random_steps if steps_nearer is None else steps_nearer
    canvas = Canvas()
    sky(canvas, words["weather"], rng)
    canvas.paste(place(words["place"]), 0, 0)
    canvas.paste(bubble(words["goal"]), 0, 0)
    canvas.paste(traveller(), 1, 29)
    canvas.paste(character(words["role"], words["mood"]), 27 - 6 * steps, 21)
    falling(canvas, words["weather"], rng)
    return canvas.pixels


@cache
def place(name: str) -> Int[Array, "48 48"]:
    """A place, clear where the sky is seen."""
    canvas = Canvas()
    PLACES[name](canvas)
    return canvas.pixels


@cache
def character(role: str, mood: str) -> Int[Array, "26 20"]:
    """A character with a dark line around it."""
    canvas = Canvas(WIDTH, HEIGHT)
    ROLES[role](canvas, mood)
    return outlined(canvas.pixels)


@cache
def traveller() -> Int[Array, "17 12"]:
    """The traveller, always the same."""
    return outlined(TRAVELLER)


@cache
def bubble(goal: str) -> Int[Array, "25 18"]:
    """A thought bubble with the treasure in it."""
    canvas = Canvas(18, 25)
    canvas.rect(2, 0, 15, 17, "k")
    canvas.rect(0, 2, 17, 15, "k")
    canvas.rect(1, 1, 16, 16, "k")
    canvas.rect(2, 1, 15, 16, "w")
    canvas.rect(1, 2, 16, 15, "w")
    canvas.disc(8, 20, 2, 1, "k")
    canvas.rect(7, 20, 9, 20, "w")
    canvas.dots([(7, 24), (8, 24)], "w")
    canvas.paste(goals()[goal], 3, 3)
    return canvas.pixels


@cache
def goals() -> dict[str, Int[Array, "12 12"]]:
    """The treasures, from goals.txt: a line "= name" before the twelve lines of each."""
    text = (Path(__file__).parent / "goals.txt").read_text("utf-8")
    blocks = (block.partition("\n") for block in text.split("\n= ")[1:])
    return {name: sprite_of(rows) for name, _, rows in blocks}
