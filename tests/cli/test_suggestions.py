"""A misspelt option, command, voice, model or engine is answered with the one that was meant."""

import pytest

from refimpl import cli

MISTAKES = [
    ("inspct pirate", "'inspect'"),
    ("inspect pirate --modle tiny", "--model"),
    ("inspect pirat", "'pirate'"),
    ("inspect tinny", "'tiny'"),
    ("generate --model tinny --prompt base:x", "'tiny'"),
    ("generate --promt base:x", "--prompt"),
    ("generate --prompt pirat:x", "'pirate'"),
    ("generate --adapter a=brad --prompt a:x", "'bard'"),
    ("generate --ops numpyy --prompt base:x", "'numpy'"),
    ("convert pirat ./new --to peft", "'pirate'"),
    ("convert pirate ./new --to pefft", "'peft'"),
    ("check --engine pefft", "'peft'"),
    ("check --engine openai-http", "'openai_http'"),
    ("check --engine mutant:scale_is_on", "'scale_is_one'"),
    ("engines setup vlm", "'vllm'"),
    ("train --ot ./new", "--out"),
]


@pytest.mark.parametrize(("command", "meant"), MISTAKES)
def test_what_was_meant(command: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(command.split())
    except SystemExit as stop:
        code = stop.code
    out, errors = capsys.readouterr()
    assert code == 2
    assert f"did you mean {meant}?" in " ".join((out + errors).split())
