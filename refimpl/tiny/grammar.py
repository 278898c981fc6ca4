"""Scenes from templates, and templates back from text: the grammar of the embedded model's world.

Writing and reading share the templates of voices.py and nothing else. Writing fills a template's slots; reading turns
the template into a regular expression in which a slot is "any word of its list", so that a sentence is recognised
by what it says and not by having been drawn before.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from refimpl.tiny import lexicon, voices
from refimpl.tiny.lexicon import bare
from refimpl.tiny.voices import BASE, Voice

# The five lines that follow a prompt. The character speaks the second and the fourth.
PARTS = ("greeting", "about", "offer", "answer", "outcome")
CHARACTER_PARTS = ("about", "answer")

_MOOD_OF = {adjective: mood for mood, adjectives in lexicon.MOODS.items() for adjective in adjectives}
_LISTS = {
    "goal": lexicon.TREASURES,
    "gift": lexicon.GIFTS,
    "place": lexicon.PLACES,
    "role": lexicon.ROLES,
    "mood": tuple(_MOOD_OF),
    "animal": lexicon.ANIMALS,
    "friend": lexicon.ANIMALS,
}
_PLAIN_LISTS = {"name": lexicon.NAMES, "weather": lexicon.WEATHERS, "number": lexicon.NUMBERS, "coin": lexicon.COINS}

Slots = dict[str, str]


@dataclass(frozen=True)
class Scene:
    """One prompt and the five lines that answer it, without the speakers' names."""

    slots: Slots
    prompt: str
    lines: tuple[str, ...]

    @property
    def completion(self) -> str:
        """What a model should write after `prompt` and a line break."""
        name = self.slots["name"]
        labels = ("Traveller: ", f"{name}: ", "Traveller: ", f"{name}: ", "")
        return "\n".join(label + line for label, line in zip(labels, self.lines, strict=True))


# ---- writing ----


def held_out(slots: Slots) -> bool:
    """Is this meeting kept out of every training text? One pair of place and name in seven is."""
    return (3 * lexicon.PLACES.index(slots["place"]) + lexicon.NAMES.index(slots["name"])) % 7 == 0


def draw_slots(rng: random.Random, *, from_held_out: bool = False) -> Slots:
    """Draw everything that stays the same throughout a scene."""
    while True:
        slots = {slot: rng.choice(_LISTS[slot]) for slot in ("goal", "gift", "place", "role", "mood")}
        slots |= {"name": rng.choice(lexicon.NAMES), "weather": rng.choice(lexicon.WEATHERS)}
        if held_out(slots) == from_held_out:
            return slots


def fill(template: str, slots: Slots, rng: random.Random) -> str:
    """Put the scene's slots, and fresh animals, number and coin, into a template."""
    fresh = {
        "animal": rng.choice(lexicon.ANIMALS),
        "friend": rng.choice(lexicon.ANIMALS),
        "number": rng.choice(lexicon.NUMBERS),
        "coin": rng.choice(lexicon.COINS),
    }
    values = slots | fresh
    bares = {slot: bare(value) if slot in _LISTS else value for slot, value in values.items()}
    return template.format(**bares, **{f"a_{slot}": values[slot] for slot in values})


def write_prompt(slots: Slots) -> str:
    """The line that a scene begins with."""
    return fill(voices.PROMPT, slots, random.Random(0))


def write_scene(rng: random.Random, voice: Voice = BASE, *, from_held_out: bool = False) -> Scene:
    """Draw one whole scene in which the character has `voice`."""
    slots = draw_slots(rng, from_held_out=from_held_out)
    accepted = rng.random() < 0.5
    meanings = {
        "about": _MOOD_OF[slots["mood"]] if voice is BASE else "",
        "answer": str(accepted),
        "outcome": str(accepted),
    }
    lines = []
    for part in PARTS:
        meaning = meanings.get(part, "")
        choices = [form.template for form in forms(part, voice) if form.meaning == meaning]
        lines.append(fill(rng.choice(choices), slots, rng))
    return Scene(slots, write_prompt(slots), tuple(lines))


def write_overheard(rng: random.Random, voice: Voice) -> str:
    """Two lines of `voice` outside any scene: how the base meets a voice's words without learning to use them."""
    slots = draw_slots(rng)
    about = fill(rng.choice(voice.about), slots, rng)
    answer = fill(rng.choice(voice.accepts + voice.refuses), slots, rng)
    header = fill("Overheard in the {place}, from {a_role}, about {a_goal} and {a_gift}.", slots, rng)
    return f"{header}\nSomeone: {about}\nSomeone: {answer}"


def prompts(seed: int, count: int) -> list[str]:
    """Different prompts about meetings that no training text contains."""
    rng = random.Random(seed)
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        prompts[write_prompt(draw_slots(rng, from_held_out=True))] = None
    return list(prompts)


# ---- reading ----


@dataclass(frozen=True)
class Form:
    """A template and what saying it means: a mood ("about"), or whether the gift was accepted ("answer", "outcome")."""

    template: str
    meaning: str = ""


@dataclass(frozen=True)
class Reading:
    """What a text says once its template is known."""

    meaning: str
    slots: Slots


@cache
def forms(part: str, voice: Voice) -> tuple[Form, ...]:
    """Every template that may stand in this part of a scene."""
    return tuple(_forms(part, voice))


def _forms(part: str, voice: Voice) -> Iterator[Form]:
    match part:
        case "greeting":
            yield from map(Form, voices.GREETINGS)
        case "offer":
            yield from map(Form, voices.OFFERS)
        case "about" if voice is BASE:
            for mood, openers in voices.OPENERS.items():
                yield from (Form(f"{opener} {about}", mood) for opener in openers for about in voice.about)
        case "about":
            yield from map(Form, voice.about)
        case "answer":
            yield from (Form(template, "True") for template in voice.accepts)
            yield from (Form(template, "False") for template in voice.refuses)
        case "outcome":
            for accepted, starts, tails in (
                ("True", voices.WINS, voices.WIN_TAILS),
                ("False", voices.LOSSES, voices.LOSS_TAILS),
            ):
                yield from (Form(start.replace("{tail}", tail), accepted) for start in starts for tail in tails)


def sentences(line: str) -> list[str]:
    """Split a line after each full stop, question mark or exclamation mark."""
    return re.split(r"(?<=[.!?]) ", line)


def read_prompt(prompt: str) -> Slots | None:
    """The slots that a prompt names, each with its article; None if it is no prompt of this grammar."""
    match = _pattern(voices.PROMPT).fullmatch(prompt)
    return _with_articles(match) if match else None


def read_line(line: str, part: str, voice: Voice = BASE) -> Reading | None:
    """Recognise a whole line; None if no template of this part and voice makes it."""
    for form, pattern in _line_patterns(part, voice):
        if match := pattern.fullmatch(line):
            return Reading(form.meaning, _with_articles(match))
    return None


def is_sentence(sentence: str, part: str, voice: Voice = BASE) -> bool:
    """Can this sentence stand in this part of a scene?"""
    return any(pattern.fullmatch(sentence) for pattern in _sentence_patterns(part, voice))


@cache
def _line_patterns(part: str, voice: Voice) -> list[tuple[Form, re.Pattern[str]]]:
    return [(form, _pattern(form.template)) for form in forms(part, voice)]


@cache
def _sentence_patterns(part: str, voice: Voice) -> list[re.Pattern[str]]:
    templates = {sentence for form in forms(part, voice) for sentence in sentences(form.template)}
    return [_pattern(template) for template in sorted(templates)]


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression. A slot that comes twice must say the same word twice."""
    pieces, used = [], set[str]()
    for i, piece in enumerate(re.split(r"\{(\w+)\}", template)):
        if i % 2 == 0:
            pieces.append(re.escape(piece))
        elif piece in used:
            pieces.append(f"(?P={piece})")
        else:
            used.add(piece)
            pieces.append(f"(?P<{piece}>{'|'.join(map(re.escape, _words(piece)))})")
    return re.compile("".join(pieces))


def _words(slot: str) -> tuple[str, ...]:
    if slot in _PLAIN_LISTS:
        return _PLAIN_LISTS[slot]
    if slot.startswith("a_"):
        return _LISTS[slot.removeprefix("a_")]
    return tuple(bare(thing) for thing in _LISTS[slot])


def _with_articles(match: re.Match[str]) -> Slots:
    """The slots of a match in their full form: "pearl" is looked up, "a pearl" stays."""
    slots = {}
    for slot, word in match.groupdict().items():
        key = slot.removeprefix("a_")
        slots[key] = word if slot != key or slot in _PLAIN_LISTS else _full(slot, word)
    return slots


def _full(slot: str, word: str) -> str:
    return next(thing for thing in _LISTS[slot] if bare(thing) == word)
