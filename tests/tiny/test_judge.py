"""The judge passes true scenes, and names what is wrong with each kind of broken one."""

import random

import pytest

from refimpl.tiny.grammar import Scene, write_scene
from refimpl.tiny.judge import judge, shuffled, shuffled_rejected
from refimpl.tiny.voices import BASE, VOICES, Voice

ALL = [BASE, *VOICES.values()]


@pytest.mark.parametrize("voice", ALL, ids=lambda voice: voice.name)
def test_true_scenes_pass(voice: Voice) -> None:
    rng = random.Random(0)
    for _ in range(200):
        scene = write_scene(rng, voice)
        verdict = judge(scene.prompt, scene.completion, voice)
        assert verdict.bad_sentences == ()
        assert verdict.inconsistencies == ()
        assert verdict.marked_lines == (0 if voice is BASE else 2)
        assert verdict.foreign_lines == 0


@pytest.mark.parametrize("voice", ALL, ids=lambda voice: voice.name)
def test_shuffled_sentences_are_rejected(voice: Voice) -> None:
    assert shuffled_rejected(voice, count=200) >= 0.99


def test_shuffling_keeps_the_words_and_changes_the_order() -> None:
    rng = random.Random(0)
    mixed = shuffled("Take the moon pearl.", rng)
    assert mixed is not None
    assert mixed != "Take the moon pearl."
    assert sorted(mixed[:-1].split()) == sorted(["Take", "the", "moon", "pearl"])
    assert shuffled("Beep.", rng) is None


@pytest.mark.parametrize("voice", VOICES.values(), ids=lambda voice: voice.name)
def test_a_scene_of_one_voice_is_no_scene_of_the_base(voice: Voice) -> None:
    scene = write_scene(random.Random(1), voice)
    verdict = judge(scene.prompt, scene.completion)
    assert verdict.bad_sentences
    assert verdict.foreign_lines == 2


def _scene() -> Scene:
    rng = random.Random(5)
    while True:
        scene = write_scene(rng)
        slots = scene.slots
        if slots["goal"] == "a moon pearl" and slots["gift"] == "a jar of honey" and slots["mood"] == "a grumpy":
            return scene


SCENE = _scene()
NAME = SCENE.slots["name"]
LINES = SCENE.completion.split("\n")


def _with(index: int, line: str) -> str:
    return "\n".join([*LINES[:index], line, *LINES[index + 1 :]])


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (SCENE.completion.replace("moon pearl", "thunder drum"), "goal: drum"),
        (_with(3, LINES[3].replace("moon pearl", "moon drum")), "goal: drum"),
        (_with(3, LINES[3].replace("honey", "cheese")), "gift: cheese"),
        (_with(1, f"{NAME}: Go away."), "no moon pearl in the about"),
        (_with(1, f"{NAME}: You may bow. The moon pearl has been sulking since Tuesday."),
         "pompous words from a grumpy character"),
        (_with(0, "Traveller: Hail, Zuzu. I seek a moon pearl."), "name: Zuzu"),
        (_with(2, "Traveller: All I have is a jar of nothing."), "gifts []"),
        ("\n".join(LINES[:4]), "4 lines"),
        (SCENE.completion + "\nAnd so on.", "6 lines"),
    ],
)  # fmt: skip
def test_each_inconsistency_is_named(completion: str, expected: str) -> None:
    assert judge(SCENE.prompt, completion).inconsistencies
    assert expected in judge(SCENE.prompt, completion).inconsistencies


def test_the_wrong_speaker_is_named() -> None:
    wrong = _with(1, LINES[1].replace(NAME, "Zuzu" if NAME != "Zuzu" else "Odo", 1))
    assert any("speakers" in fault for fault in judge(SCENE.prompt, wrong).inconsistencies)


def test_the_outcome_must_follow_from_the_answer() -> None:
    accepted = f"{NAME}: We have a bargain. Leave the honey and take the moon pearl."
    lost = f"So the traveller keeps the honey and forgets the moon pearl, and {NAME} starts to hum."
    won = f"So the traveller runs off with the moon pearl, and {NAME} hugs the honey."
    fault = "the outcome does not follow from the answer"
    assert fault in judge(SCENE.prompt, "\n".join([*LINES[:3], accepted, lost])).inconsistencies
    assert judge(SCENE.prompt, "\n".join([*LINES[:3], accepted, won])).inconsistencies == ()


@pytest.mark.parametrize("completion", ["", "\n", "Traveller:", "Nettle: \n\n\n\n", "a\nb\nc\nd\ne", "/ / /\n/ /"])
def test_rubbish_is_judged_and_not_crashed_on(completion: str) -> None:
    verdict = judge(SCENE.prompt, completion)
    assert not verdict.consistent
    assert len(verdict.bad_sentences) == verdict.sentences > 0


def test_a_prompt_of_another_world_is_refused() -> None:
    with pytest.raises(ValueError, match="not a prompt"):
        judge("Once upon a time.", "")
