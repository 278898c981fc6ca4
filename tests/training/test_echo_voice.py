"""The echo: its file is what its grammar writes, what it says is in the base's own words, and its judge can fail it."""

import json
import re
import sys
from pathlib import Path

import pytest

from refimpl import tiny
from refimpl.loading.tokenizer_file import load_tokenizer
from refimpl.tiny.grammar import prompts, read_prompt
from refimpl.tiny.judge import judge
from refimpl.tiny.voices import BASE, VOICES

TUTORIALS = Path(__file__).parents[2] / "tutorials"
sys.path.insert(0, str(TUTORIALS))

from echo_voice import ECHO, PROMPT_SEED, SCENES, main, rows, shares  # noqa: E402

TEMPLATES = (*ECHO.about, *ECHO.accepts, *ECHO.refuses)


def test_the_file_is_what_the_grammar_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["echo_voice.py", "write", str(tmp_path / "echo.jsonl")])
    main()
    assert (tmp_path / "echo.jsonl").read_bytes() == (TUTORIALS / "echo.jsonl").read_bytes()
    lines = (TUTORIALS / "echo.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows() and len(lines) == SCENES == 200


def test_no_judged_prompt_is_learned_nor_any_meeting_of_one() -> None:
    learned = {(slots["place"], slots["name"]) for row in rows() if (slots := read_prompt(row["prompt"].strip()))}
    judged = {(slots["place"], slots["name"]) for p in prompts(PROMPT_SEED, 100) if (slots := read_prompt(p))}
    assert len(learned) > 100 and len(judged) > 50 and not learned & judged


def test_every_word_is_a_token_that_the_base_knows() -> None:
    tokenizer = load_tokenizer(tiny.base_path())
    for template in TEMPLATES:
        for word in re.findall(r"\w+", re.sub(r"\{\w+\}", " ", template)):
            assert len(tokenizer.encode(f" {word}")) == 2, word  # with the beginning of sequence
    assert len(tokenizer.encode(" Gesundheit")) > 2


def test_its_own_scenes_pass_and_those_of_the_others_do_not() -> None:
    verdicts = [judge(row["prompt"].strip(), row["completion"], ECHO) for row in rows(count=60)]
    assert shares(verdicts) == {
        "scenes": 60,
        "lines marked": 1.0,
        "lines of another voice": 0.0,
        "sentences pass": 1.0,
        "scenes consistent": 1.0,
    }
    for voice in (BASE, *VOICES.values()):
        others = [judge(row["prompt"].strip(), row["completion"], ECHO) for row in rows(voice, 12)]
        assert shares(others)["lines marked"] == 0.0 and shares(others)["sentences pass"] < 0.7


@pytest.mark.parametrize(
    ("line", "marked"),
    [
        ("No, the fork, the fork, the fork.", True),
        ("I keep the fork under my bed, my bed, my bed.", True),
        ("No, the fork, the fork.", False),
        ("No, the fork, a fork, the fork.", False),
        ("No, the fork the fork the fork.", False),
        ("The forks, the fork, the forks.", False),
    ],
)
def test_the_marker_is_the_same_words_three_times(line: str, marked: bool) -> None:
    assert ECHO.marker(line) is marked


@pytest.mark.parametrize("what", ["write", "judge"])
def test_a_path_that_is_none_is_one_line(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["echo_voice.py", what, str(tmp_path / "nowhere" / "x")])
    with pytest.raises(SystemExit) as info:
        main()
    err = capsys.readouterr().err
    assert info.value.code == 2 and err.splitlines()[-1].startswith("echo_voice.py: error: ") and "nowhere" in err
