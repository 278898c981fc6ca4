"""Is a generated scene any good? Each sentence is held against the grammar, and the whole against its own prompt."""

import random
import re
from dataclasses import dataclass

from refimpl.tiny import lexicon
from refimpl.tiny.grammar import (
    CHARACTER_PARTS,
    PARTS,
    Slots,
    is_sentence,
    read_line,
    read_prompt,
    sentences,
    write_scene,
)
from refimpl.tiny.lexicon import bare
from refimpl.tiny.voices import BASE, VOICES, Voice

_LABEL = re.compile(r"(\w+): (.*)")


@dataclass(frozen=True)
class Verdict:
    """What judge() found in one scene."""

    sentences: int
    bad_sentences: tuple[str, ...]
    inconsistencies: tuple[str, ...]
    character_lines: tuple[str, ...]
    marked_lines: int  # character lines with the voice's own marker
    foreign_lines: int  # character lines with the marker of another voice

    @property
    def consistent(self) -> bool:
        """Does the scene keep to what its prompt and its traveller say?"""
        return not self.inconsistencies


def judge(prompt: str, completion: str, voice: Voice = BASE) -> Verdict:
    """Judge the lines that a model wrote after `prompt`."""
    slots = read_prompt(prompt)
    if slots is None:
        raise ValueError(f"not a prompt of this grammar: {prompt!r}")
    lines = completion.split("\n")
    speakers, texts = zip(*(_unlabel(line, i) for i, line in enumerate(lines)), strict=True)
    total, bad = 0, []
    for i, text in enumerate(texts):
        for sentence in sentences(text):
            total += 1
            known_speaker = speakers[i] in ("", "Traveller", *lexicon.NAMES)
            if i >= len(PARTS) or not known_speaker or not is_sentence(sentence, PARTS[i], voice):
                bad.append(sentence)
    spoken = tuple(text for text, part in zip(texts, PARTS, strict=False) if part in CHARACTER_PARTS)
    others = [other for other in VOICES.values() if other is not voice]
    return Verdict(
        sentences=total,
        bad_sentences=tuple(bad),
        inconsistencies=tuple(_inconsistencies(slots, speakers, texts, voice)),
        character_lines=spoken,
        marked_lines=sum(voice.marker(line) for line in spoken),
        foreign_lines=sum(any(other.marker(line) for other in others) for line in spoken),
    )


def _unlabel(line: str, index: int) -> tuple[str, str]:
    """Split "Nettle: Go away." into speaker and text. The outcome, line 4, has no speaker."""
    match = _LABEL.fullmatch(line) if index < 4 else None
    return (match[1], match[2]) if match else ("", line)


def _inconsistencies(slots: Slots, speakers: tuple[str, ...], texts: tuple[str, ...], voice: Voice) -> list[str]:
    """Everything in which the scene contradicts its prompt, its traveller, or the character's own answer."""
    if len(texts) != len(PARTS):
        return [f"{len(texts)} lines"]
    faults = []
    name = slots["name"]
    if speakers != ("Traveller", name, "Traveller", name, ""):
        faults.append(f"speakers {speakers}")
    offered = [gift for gift in lexicon.GIFTS if gift in texts[2]]
    if len(offered) != 1:
        return [*faults, f"gifts {offered}"]
    slots = slots | {"gift": offered[0]}
    goal, gift = bare(slots["goal"]), bare(slots["gift"])
    for i, required in ((0, goal), (0, name), (1, goal), (3, gift), (4, name)):
        if not re.search(rf"\b{required}\b", texts[i]):
            faults.append(f"no {required} in the {PARTS[i]}")
    for slot in ("goal", "gift", "place", "role", "name"):
        strangers = _words_of(slot) - set(bare(slots[slot]).split() if slot != "name" else [name])
        faults += [f"{slot}: {word}" for text in texts for word in re.findall(r"\w+", text) if word in strangers]
    readings = [read_line(text, part, voice) for text, part in zip(texts, PARTS, strict=True)]
    mood = next(mood for mood, adjectives in lexicon.MOODS.items() if slots["mood"] in adjectives)
    if voice is BASE and readings[1] and readings[1].meaning != mood:
        faults.append(f"{readings[1].meaning} words from a {mood} character")
    if readings[3] is None or readings[4] is None or readings[3].meaning != readings[4].meaning:
        faults.append("the outcome does not follow from the answer")
    return faults


def _words_of(slot: str) -> set[str]:
    """The words that can only mean this slot."""
    things = {
        "goal": map(bare, lexicon.TREASURES),
        "gift": map(bare, lexicon.GIFTS),
        "place": map(bare, lexicon.PLACES),
        "role": map(bare, lexicon.ROLES),
        "name": lexicon.NAMES,
    }
    return {word for thing in things[slot] for word in thing.split()}


# ---- the judge judged: word-shuffled sentences should not pass ----


def shuffled(sentence: str, rng: random.Random) -> str | None:
    """The same words in another order, the last mark kept in place; None where there is no other order."""
    words, mark = sentence[:-1].split(" "), sentence[-1]
    if len(set(words)) < 2:
        return None
    while (order := rng.sample(words, len(words))) == words:
        pass
    return " ".join(order) + mark


def shuffled_rejected(voice: Voice, count: int = 400) -> float:
    """The share of word-shuffled sentences of `count` true scenes that the checker rejects."""
    rng = random.Random(3)
    rejected = []
    for _ in range(count):
        for line, part in zip(write_scene(rng, voice).lines, PARTS, strict=True):
            mixed = (shuffled(sentence, rng) for sentence in sentences(line))
            rejected += [not is_sentence(sentence, part, voice) for sentence in mixed if sentence]
    return sum(rejected) / len(rejected)
