"""Adapters as people have them: each case is served or stopped, by `generate` as by `inspect`, in words that help."""

import json
from pathlib import Path

import pytest
from loading.wild_cases import CASES

from refimpl import cli

REQUESTS = '{"adapter": "a", "prompt_ids": [5, 6]}\n{"adapter": "base", "prompt_ids": [5, 6]}\n'


def said(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command, and all that it prints, in one line."""
    code = cli.main(argv)
    out, errors = capsys.readouterr()
    return code, " ".join((out + errors).split())


@pytest.mark.parametrize("name", CASES)
def test_what_people_have_on_disk(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    case.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, text = said(["inspect", case.inspected, "--model", "model", "--json"], capsys)
    assert code == (0 if case.served else 2), text
    for words in case.words:
        assert words in text
    code, text = said(["inspect", case.inspected, "--json"], capsys)
    sound = case.served if case.sound_alone is None else case.sound_alone
    assert code == (0 if sound else 2), text
    for words in case.words if case.alone is None else case.alone:
        assert words in text
    (tmp_path / "requests.jsonl").write_text(REQUESTS)
    argv = ["generate", "--model", "model", "--adapter", f"a={case.inspected}", "--json", "--max-new-tokens", "2"]
    code, text = said([*argv, "--prompts", "requests.jsonl"], capsys)
    assert code == (0 if case.served else 2), text
    if case.served:
        assert len(json.loads(text[: text.rindex("}") + 1])["texts"]) == 2
    else:
        for words in case.words[:1]:
            assert words in text
