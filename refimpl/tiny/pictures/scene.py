"""A scene's words -> a 48 x 48 picture, as indices into the palette."""

from functools import cache
from pathlib import Path

import numpy as np

from refimpl.tiny import lexicon
from refimpl.tiny.lexicon import bare

from . import characters_a, characters_b, places_a, places_b
from .canvas import CLEAR, Canvas, outlined, sprite
from .figure import H, W
from .weather import falling, sky


def _by_word(things, *modules):
    """A drawing function for each word of a list: "a toad museum" is drawn by toad_museum."""
    functions = {name: f for module in modules for name, f in vars(module).items()}
    return {bare(thing): functions[bare(thing).replace(" ", "_")] for thing in things}


PLACE = _by_word(lexicon.PLACES, places_a, places_b)
ROLE = _by_word(lexicon.ROLES, characters_a, characters_b)

TRAVELLER = sprite("""
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


@cache
def goals() -> dict[str, np.ndarray]:
    found, name = {}, ""
    for line in (Path(__file__).parent / "goals.txt").read_text().splitlines():
        if line.startswith("= "):
            name = line[2:]
            found[name] = []
        elif not line.startswith("#"):
            found[name].append(line)
    return {name: sprite("\n".join(rows)) for name, rows in found.items()}


@cache
def place_layer(place: str) -> np.ndarray:
    c = Canvas()
    PLACE[place](c)
    return c.a


@cache
def character(role: str, mood: str) -> np.ndarray:
    c = Canvas(W, H)
    ROLE[role](c, mood)
    return outlined(c.a)


@cache
def bubble(goal: str) -> np.ndarray:
    c = Canvas(18, 25)
    c.rect(2, 0, 15, 17, "k")
    c.rect(0, 2, 17, 15, "k")
    c.rect(1, 1, 16, 16, "k")
    c.rect(2, 1, 15, 16, "w")
    c.rect(1, 2, 16, 15, "w")
    c.disc(8, 20, 2, 1, "k")
    c.rect(7, 20, 9, 20, "w")
    c.dots([(7, 24), (8, 24)], "w")
    c.paste(goals()[goal], 3, 3)
    return c.a


@cache
def traveller() -> np.ndarray:
    return outlined(TRAVELLER)


Words = dict[str, str]  # place, role, goal, mood, weather: bare names


def draw(slots: Words, seed: int, steps_left: int | None = None) -> np.ndarray:
    """The picture of a scene: place, role, mood, goal, weather (bare names). The seed moves what the words leave open."""
    rng = np.random.default_rng(seed)
    drawn = int(rng.integers(2))
    nearer = drawn if steps_left is None else steps_left
    c = Canvas()
    sky(c, slots["weather"], rng)
    c.paste(place_layer(slots["place"]), 0, 0)
    c.paste(bubble(slots["goal"]), 0, 0)
    c.paste(traveller(), 1, 29)
    c.paste(character(slots["role"], slots["mood"]), 27 - 6 * nearer, 21)
    falling(c, slots["weather"], rng)
    return c.a
