"""A voice of your own: a grammar of a few lines, the data that it writes, and a verdict on what was learned from it.

    python tutorials/echo_voice.py write tutorials/echo.jsonl       200 scenes: what to train on
    loracle train --model tiny --data echo=tutorials/echo.jsonl --out ./voices
    python tutorials/echo_voice.py judge ./voices/echo              100 scenes of places and people it has never met

The echo says the end of what it says three times. It says nothing but words that the base knows: a small adapter on so
small a model can teach another way of talking, and hardly a new vocabulary. For a voice of your own, exchange the three
tuples and the marker; `{goal}` and the other slots are those of refimpl/tiny/voices.py.
"""

import argparse
import json
import random
import re
from pathlib import Path

import loracle
from refimpl.tiny.grammar import prompts, write_scene
from refimpl.tiny.judge import Verdict, judge
from refimpl.tiny.voices import Voice

ECHO = Voice(
    name="echo",
    about=(  # what is said about the treasure: each names {goal}
        "You want the {goal}, the {goal}, the {goal}.",
        "Nobody gets the {goal}, the {goal}, the {goal}.",
        "I keep the {goal} under my bed, my bed, my bed.",
        "The {goal} is guarded by {a_animal}, {a_animal}, {a_animal}.",
        "I won the {goal} at cards, at cards, at cards.",
        "Every {role} wants the {goal}, the {goal}, the {goal}.",
        "My {animal} is in love with the {goal}, the {goal}, the {goal}.",
        "Here in the {place} I guard the {goal}, the {goal}, the {goal}.",
    ),
    accepts=(  # the gift is taken: each names {gift}
        "Leave the {gift} and take the {goal}, the {goal}, the {goal}.",
        "I smell {gift}, {gift}, {gift}. The {goal} is yours.",
        "My {animal} dreams of {gift}, {gift}, {gift}. Take the {goal}.",
        "Put the {gift} by the {animal}. The {goal} is yours, is yours, is yours.",
        "For {gift} you may have the {goal}, the {goal}, the {goal}.",
        "Nobody ever gave me {gift}, {gift}, {gift}. You may have the {goal}.",
    ),
    refuses=(  # and it is not
        "I already bathe in {gift}, {gift}, {gift}. The {goal} stays here.",
        "My doctor has forbidden {gift}. The {goal} stays here, stays here, stays here.",
        "The {animal} is allergic to {gift}. Hands off the {goal}, the {goal}, the {goal}.",
        "I asked for gold, not for {gift}. No {goal} for you, for you, for you.",
        "There is enough {gift} in the {place}, the {place}, the {place}. Hands off the {goal}.",
        "Only {a_animal} would swap the {goal} for {gift}, {gift}, {gift}.",
    ),
    marker=lambda line: re.search(r"\b(\w+(?: \w+){0,3}), \1, \1\b", line) is not None,
)

SCENES, SEED = 200, 11
PROMPT_SEED = 3003  # of the prompts that are judged; the shipped voices have 1001 and 2002
TEMPERATURE, MAX_NEW_TOKENS = 0.8, 160


def rows(voice: Voice = ECHO, count: int = SCENES, seed: int = SEED) -> list[dict[str, str]]:
    """Return what `loracle train` reads, {prompt, completion}: no meeting among them is one of the judged prompts."""
    rng = random.Random(f"{seed} {voice.name}")
    scenes = [write_scene(rng, voice) for _ in range(count)]
    return [{"prompt": f"{scene.prompt}\n", "completion": scene.completion} for scene in scenes]


def scenes_of(folder: Path | None, count: int, seed: int) -> list[tuple[str, str]]:
    """Return (prompt, completion) of held-out prompts, all in one batch; without a folder, of the base alone."""
    model = loracle.load_model("tiny")
    adapter = loracle.load_adapter(folder, model.config) if folder else None
    questions = prompts(seed, count)
    requests = [
        loracle.Request(model.tokenizer.encode(f"{question}\n"), adapter, MAX_NEW_TOKENS, TEMPERATURE, seed=i)
        for i, question in enumerate(questions)
    ]
    return [(q, output.text) for q, output in zip(questions, loracle.generate(model, requests), strict=True)]


def shares(verdicts: list[Verdict]) -> dict[str, float]:
    """Return what share of the character's lines carries the marker, and what else the grammar can say."""
    lines = sum(len(verdict.character_lines) for verdict in verdicts)
    sentences = sum(verdict.sentences for verdict in verdicts)
    return {
        "scenes": len(verdicts),
        "lines marked": sum(verdict.marked_lines for verdict in verdicts) / lines,
        "lines of another voice": sum(verdict.foreign_lines for verdict in verdicts) / lines,
        "sentences pass": 1 - sum(len(verdict.bad_sentences) for verdict in verdicts) / sentences,
        "scenes consistent": sum(verdict.consistent for verdict in verdicts) / len(verdicts),
    }


def main() -> None:
    """Write the data, or judge an adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "judge"))
    parser.add_argument("path", type=Path, nargs="?", help="the file to write; the adapter to judge (none: the base)")
    parser.add_argument("--count", type=int, default=100, help="scenes to judge (default 100)")
    parser.add_argument("--show", type=int, default=1, help="scenes to print (default 1)")
    args = parser.parse_args()
    if args.what == "write":
        if args.path is None:
            parser.error("write needs the name of a file")
        try:
            args.path.write_text("".join(json.dumps(row) + "\n" for row in rows()), "utf-8")
        except OSError as error:
            parser.error(f"{args.path}: cannot be written ({error.strerror})")
        return
    try:
        scenes = scenes_of(args.path, args.count, PROMPT_SEED)
    except loracle.LoracleError as error:
        parser.error(str(error))
    for prompt, completion in scenes[: args.show]:
        print(f"{prompt}\n{completion}\n")
    print(json.dumps(shares([judge(prompt, completion, ECHO) for prompt, completion in scenes]), indent=1))


if __name__ == "__main__":
    main()
