"""The grammar writes what it reads, reads what it writes, and its slots cannot be mistaken for each other."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.tiny import lexicon, voices
from refimpl.tiny.grammar import (
    PARTS,
    forms,
    held_out,
    is_sentence,
    prompts,
    read_line,
    read_prompt,
    sentences,
    write_overheard,
    write_prompt,
    write_scene,
)
from refimpl.tiny.lexicon import bare
from refimpl.tiny.voices import BASE, VOICES, Voice, has_true_rhyme

ALL = [BASE, *VOICES.values()]
COPIED = {
    "goal": lexicon.TREASURES,
    "gift": lexicon.GIFTS,
    "place": lexicon.PLACES,
    "role": lexicon.ROLES,
    "animal": lexicon.ANIMALS,
}


@settings(deadline=None)  # the first example compiles the patterns
@given(seed=st.integers(0, 2**32), voice=st.sampled_from(ALL))
def test_what_is_written_can_be_read_back(seed: int, voice: Voice) -> None:
    scene = write_scene(random.Random(seed), voice)
    assert read_prompt(scene.prompt) == {k: v for k, v in scene.slots.items() if k != "gift"}
    for line, part in zip(scene.lines, PARTS, strict=True):
        reading = read_line(line, part, voice)
        assert reading is not None, line
        assert all(is_sentence(sentence, part, voice) for sentence in sentences(line))
        for slot, value in reading.slots.items():
            if slot in scene.slots:
                assert value == scene.slots[slot], line


@pytest.mark.parametrize("voice", ALL, ids=lambda voice: voice.name)
def test_every_line_has_one_meaning(voice: Voice) -> None:
    """Whether a gift was accepted must be in the words: no template of one meaning may equal one of another."""
    for part in PARTS:
        counts = Counter(form.template for form in forms(part, voice))
        assert max(counts.values()) == 1


def test_a_line_of_one_voice_is_not_a_line_of_another() -> None:
    rng = random.Random(0)
    for voice in ALL:
        for _ in range(20):
            scene = write_scene(rng, voice)
            for other in ALL:
                if other is not voice:
                    assert read_line(scene.lines[1], "about", other) is None
                    assert read_line(scene.lines[3], "answer", other) is None


def test_a_word_of_a_slot_is_found_nowhere_else() -> None:
    owners: dict[str, set[str]] = {}
    for slot, things in COPIED.items():
        for thing in things:
            for word in bare(thing).split():
                owners.setdefault(word, set()).add(slot)
    assert {word: slots for word, slots in owners.items() if len(slots) > 1} == {}

    templates = [voices.PROMPT, *(form.template for voice in ALL for part in PARTS for form in forms(part, voice))]
    spoken = {word for template in templates for word in re.findall(r"\w+", re.sub(r"\{\w+\}", "", template))}
    spoken |= {word for weather in lexicon.WEATHERS for word in weather.split()}
    spoken |= {bare(adjective) for adjectives in lexicon.MOODS.values() for adjective in adjectives}
    spoken |= {word for coin in lexicon.COINS for word in coin.split()}
    assert spoken & set(owners) == set()
    assert spoken & set(lexicon.NAMES) == set()


def test_heads_are_unique_within_a_slot() -> None:
    """A thing can be told by any one of its words."""
    for things in COPIED.values():
        counts = Counter(word for thing in things for word in bare(thing).split())
        assert max(counts.values()) == 1


def test_articles() -> None:
    adjectives = [adjective for group in lexicon.MOODS.values() for adjective in group]
    for thing in [*(thing for things in COPIED.values() for thing in things), *adjectives]:
        article, word = thing.split()[:2]
        vowel = (word[0] in "aeiou" and word != "unicorn") or word == "honest"
        assert article == ("an" if vowel else "a"), thing


def test_templates_leave_articles_to_the_slots() -> None:
    for voice in ALL:
        for part in PARTS:
            for form in forms(part, voice):
                assert not re.search(r"\b[Aa]n? \{", form.template), form.template


@pytest.mark.parametrize("voice", VOICES.values(), ids=lambda voice: voice.name)
def test_every_character_line_of_a_voice_is_marked_as_its_own(voice: Voice) -> None:
    rng = random.Random(1)
    for _ in range(300):
        scene = write_scene(rng, voice)
        for line in (scene.lines[1], scene.lines[3]):
            assert voice.marker(line), line
            assert not any(other.marker(line) for other in VOICES.values() if other is not voice), line


def test_no_line_of_the_base_is_marked() -> None:
    rng = random.Random(2)
    for _ in range(300):
        for line in write_scene(rng).lines:
            assert not any(voice.marker(line) for voice in VOICES.values()), line


def test_rhymes_are_true() -> None:
    for template in voices.BARD.about + voices.BARD.accepts + voices.BARD.refuses:
        assert has_true_rhyme(template), template
    assert not has_true_rhyme("I keep it close to me, / and nobody takes it from me.")  # a repeated ending
    assert not has_true_rhyme("I keep it under the stair, / and nobody asks for the moon.")
    assert not has_true_rhyme("The stair. My hair.")
    assert not has_true_rhyme("A half / ")


def test_no_word_rhymes_in_two_ways() -> None:
    counts = Counter(word for sounds in voices.RHYMES for word in sounds)
    assert max(counts.values()) == 1


def test_held_out_meetings_are_in_no_training_text() -> None:
    rng = random.Random(4)
    assert not any(held_out(write_scene(rng, voice).slots) for voice in ALL for _ in range(500))
    pairs = [(place, name) for place in lexicon.PLACES for name in lexicon.NAMES]
    share = sum(held_out({"place": place, "name": name}) for place, name in pairs) / len(pairs)
    assert abs(share - 1 / 7) < 0.005
    for overheard in (write_overheard(rng, voice) for voice in VOICES.values() for _ in range(50)):
        assert not any(re.search(rf"\b{name}\b", overheard) for name in lexicon.NAMES)


def test_prompts_for_evaluation_are_held_out_and_distinct() -> None:
    first, second = prompts(1, 200), prompts(2, 200)
    assert len(set(first)) == 200
    assert not set(first) & set(second)
    for prompt in first:
        slots = read_prompt(prompt)
        assert slots is not None
        assert held_out(slots)
        assert write_prompt(slots) == prompt


def test_what_is_not_of_the_grammar_is_not_read() -> None:
    assert read_prompt("Fog curls around the toad museum.") is None
    assert read_line("Hail, Nettle. I seek a anvil.", "greeting") is None
    assert read_line("Hail, Nettle. I seek a moon pearl.", "offer") is None
    assert read_line("Oh honey, oh cheese, my long-lost friend, / the moon pearl is yours till the very end.", "answer",
                     voices.BARD) is None  # fmt: skip
