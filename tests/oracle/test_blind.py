"""Engines under code names: nothing that is printed or written says what they are, until --reveal does."""

import json
from pathlib import Path

import pytest
from support.testbed import small_testbed

from refimpl import cli
from refimpl.engines.interface import EngineError
from refimpl.oracle.bugs import Mutant, all_mutants
from refimpl.oracle.bugs.blind import HUNT, code_name, make, revealed

QUICK = ("--model", str(small_testbed().folder), "--jobs", "1")
BATCHES, SEQUENCES = ("--cases", "2", "--sequences", "0"), ("--cases", "0", "--sequences", "3")


def everything(capsys: pytest.CaptureFixture[str], folder: Path, *argv: str) -> str:
    """Return all that `loracle check` prints and writes, as one text."""
    assert cli.main(["check", *argv, *QUICK, "--report", str(folder)]) == 1
    printed = capsys.readouterr()
    files = [file.read_bytes().decode("latin-1") for file in sorted(folder.rglob("*")) if file.is_file()]
    assert len(files) > 5  # the page, the JSON, and what repeats the failure
    assert cli.main(["check", "--replay", str(folder / "repro"), "--json"]) == 1
    replayed = capsys.readouterr()
    return "\n".join([*printed, *files, *replayed])


def telling(mutant: Mutant) -> list[str]:
    """What would give it away."""
    return [mutant.name.partition("[")[0], mutant.what, *mutant.links, *(link.split("//")[1] for link in mutant.links)]


def gives_away(text: str, code: str) -> list[str]:
    """Return what in the text says which mutant it is, or which mutants there are."""
    names = [name for name in all_mutants() if len(name) > 12]  # shorter ones are words of every page
    return [word for word in (*telling(revealed(code)), *names) if word in text]


def test_nothing_gives_a_blind_engine_away(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = everything(capsys, tmp_path / "out", "--engine", "blind:c132", *BATCHES)
    assert gives_away(text, "c132") == [] and "blind:c132" in text


def test_a_bug_of_state_has_symptoms_and_no_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = everything(capsys, tmp_path / "out", "--engine", "blind:e209", *SEQUENCES, "--json")
    assert gives_away(text, "e209") == []
    report = json.loads((tmp_path / "out" / "check.json").read_text("utf-8"))
    assert report["verdict"] == "fail" and report["smallest_failure"]
    assert any(symptom["what"].startswith("right in a fresh engine") for symptom in report["symptoms"])
    assert report["diagnosis"] == [] and report["power"] == {}


def test_under_its_own_name_the_same_engine_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """So that the test above can fail."""
    mutant = revealed("c132")
    text = everything(capsys, tmp_path / "out", "--engine", f"mutant:{mutant.name}", "--no-power", *BATCHES)
    assert all(word in text for word in telling(mutant))


@pytest.mark.parametrize("code", HUNT)
def test_reveal_tells(capsys: pytest.CaptureFixture[str], code: str) -> None:
    mutant = revealed(code)
    assert cli.main(["check", "--engine", f"blind:{code}", "--reveal"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in (mutant.name, mutant.what, *mutant.links, f"class {mutant.family}"))
    assert cli.main(["check", "--engine", f"blind:{code}", "--reveal", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["class"], tuple(told["links"])) == (mutant.name, mutant.family, mutant.links)


def test_every_mutant_has_a_code_name_of_its_own() -> None:
    """Where a new mutant takes another one's: change SALT, and with it HUNT and the pages that name the eight."""
    codes = {code_name(name): name for name in all_mutants()}
    assert len(codes) == len(all_mutants())
    assert all(revealed(f"blind:{code}").name == name for code, name in codes.items())


def test_the_hunt_has_one_engine_of_each_class() -> None:
    assert sorted(revealed(code).family for code in HUNT) == list("ABCDEFGH")
    assert list(HUNT) == sorted(HUNT)


def test_the_names_stand_nowhere_in_plain_text() -> None:
    import refimpl.oracle.bugs.blind as module

    source = Path(str(module.__file__)).read_text("utf-8")
    assert not [name for name in all_mutants() if name in source]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--engine", "blind:z9"], "no engine has the code name 'z9'; those of the bug hunt are c132,"),
        (["--engine", "blind:z9", "--reveal"], "no engine has the code name 'z9'"),
        (["--engine", "numpy", "--reveal"], "--reveal is for --engine blind:KEY"),
        (["--reveal"], "--reveal is for --engine blind:KEY"),
    ],
)
def test_a_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], sentence: str) -> None:
    assert cli.main(["check", *argv]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_a_code_name_that_there_is_not_is_an_error() -> None:
    with pytest.raises(EngineError, match="no engine has the code name"):
        make("blind:nothing")


def test_the_backend_of_a_blind_engine_can_be_traced(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`loracle logits --ops blind:KEY --trace`: how a learner finds the module."""
    file = tmp_path / "blind.safetensors"
    argv = ["logits", "--ops", "blind:c132", "--prompt", "bard:Fog", "--trace", "layers.0.*", "--output", str(file)]
    assert cli.main(argv) == 0 and file.stat().st_size > 0
    assert cli.main([*argv[:2], "blind:z9", *argv[3:]]) == 2
    assert "no engine has the code name" in capsys.readouterr().err
