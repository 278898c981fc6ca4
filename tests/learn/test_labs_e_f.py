"""Labs E and F: right answers get all points, each wrong one is seen, and what is no answer is said in one line."""

import json
import re
import shutil
from pathlib import Path

import pytest

from refimpl import cli, learn
from refimpl.learn.exercise import Lab, Mistake
from refimpl.learn.grade import grade
from refimpl.learn.graders import lab_e_bug_hunt, lab_f_monday
from refimpl.learn.verdict import DOES_NOT_RUN, NOT_ATTEMPTED, PASSED, RAISES, WRONG
from refimpl.oracle.bugs import Mutant, all_mutants
from refimpl.oracle.bugs.blind import HUNT, revealed

LABS = Path(learn.__file__).parent / "labs"
TEACHER = Path(__file__).parents[2] / "teacher" / "labs"
CONVERSION = lab_f_monday.CONVERSION


@pytest.mark.parametrize("name", ["lab_e_bug_hunt", "lab_f_monday"])
def test_the_lab_has_its_page_its_files_hints_and_a_page_for_the_teacher(name: str) -> None:
    lab = learn.load(name)
    assert isinstance(lab, Lab) and lab.name == name and len(lab.hints) == 3
    page = (LABS.parent / lab.page).read_text("utf-8")
    assert f"{lab.minutes} minutes" in page
    assert all((LABS / file).exists() for file in lab.files)
    assert f"{lab.minutes} minutes" in (TEACHER / Path(lab.page).name).read_text("utf-8")


# Lab E.


def answers(folder: Path, lines: str) -> Path:
    (folder / "answers.toml").write_text(lines, "utf-8")
    return folder


def right(code: str) -> str:
    mutant = revealed(code)
    modules = json.dumps(lab_e_bug_hunt.wrong_modules(mutant))
    return f'[{code}]\nclass = "{mutant.family}"\nmodule = {modules}\ncause = "{mutant.name}"\n'


def test_right_answers_get_all_points(tmp_path: Path) -> None:
    verdict = lab_e_bug_hunt.LAB.grade(answers(tmp_path, "".join(map(right, HUNT))))
    assert verdict.outcome == PASSED and verdict.text().startswith("lab_e_bug_hunt: passed: 32 of 32 points")


def test_what_the_learner_is_given_is_not_attempted_and_names_the_eight(tmp_path: Path) -> None:
    shutil.copy(LABS / "e_bug_hunt" / "answers.toml", tmp_path)
    assert lab_e_bug_hunt.LAB.grade(tmp_path).outcome == NOT_ATTEMPTED
    given = (tmp_path / "answers.toml").read_text("utf-8")
    assert re.findall(r"^\[(.*)\]$", given, re.M) == list(HUNT)
    page = (LABS / "e_bug_hunt.md").read_text("utf-8")
    assert "   ".join(HUNT) in page
    assert not [code for code in HUNT if revealed(code).name in page + given]


def test_wrong_answers_get_none_and_right_ones_are_not_given_away(tmp_path: Path) -> None:
    lines = f'[{HUNT[0]}]\nclass = "I"\nmodule = "q_proj"\ncause = "rslora_ignored"\n' + right(HUNT[1])
    verdict = lab_e_bug_hunt.LAB.grade(answers(tmp_path, lines))
    assert verdict.outcome == WRONG
    assert verdict.lines[0] == f"{HUNT[0]}  0 of 4   class not yet, module not yet, cause not yet"
    assert verdict.lines[1].startswith(f"{HUNT[1]}  4 of 4")
    assert verdict.lines[2] == f"{HUNT[2]}  0 of 4   no answer yet"
    assert revealed(HUNT[0]).name not in verdict.text() and verdict.headline.startswith("not yet: 4 of 32")


def test_five_engines_in_full_are_enough(tmp_path: Path) -> None:
    assert lab_e_bug_hunt.LAB.grade(answers(tmp_path, "".join(map(right, HUNT[:5])))).outcome == PASSED
    assert lab_e_bug_hunt.LAB.grade(answers(tmp_path, "".join(map(right, HUNT[:4])))).outcome == WRONG


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("[k7]\n", "[k7] is none of the eight engines: c132,"),
        ("c132 = 3\n", "[c132] is none of the eight engines"),
        ('[c132]\nclass = "Z"\n', "[c132] class 'Z': one of A, B"),
        ('[c132]\nmodule = ["qproj"]\n', "[c132] module 'qproj': q_proj, "),
        ('[c132]\ncause = "a typo"\n', "[c132] cause 'a typo': a name that `loracle engines --mutants` lists"),
        ("[c132]\nwhere = 1\n", "[c132] has 'where': an answer has class, module, cause"),
        ("[c132\n", "answers.toml cannot be read"),
    ],
)
def test_what_is_no_answer_is_said(tmp_path: Path, lines: str, sentence: str) -> None:
    verdict = lab_e_bug_hunt.LAB.grade(answers(tmp_path, lines))
    assert verdict.outcome == DOES_NOT_RUN and sentence in verdict.lines[0]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    assert lab_e_bug_hunt.LAB.grade(tmp_path).outcome == DOES_NOT_RUN


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("k_and_v_deltas_swapped", ["k_proj", "v_proj"]),
        ("not_applied_to[o_proj]", ["o_proj"]),
        ("adapters_ignored", ["all"]),
        ("key_without_parent", ["none"]),
    ],
)
def test_wrong_modules_are_those_of_the_mutant(name: str, modules: list[str]) -> None:
    mutant: Mutant = all_mutants()[name]
    assert lab_e_bug_hunt.wrong_modules(mutant) == modules


# Lab F.


def test_the_solution_passes_on_the_pirate_too(tmp_path: Path) -> None:
    shutil.copy(TEACHER / "f_to_pair.py", tmp_path / "to_pair.py")
    shutil.copy(LABS / "f_monday" / "page.md", tmp_path)
    verdict = lab_f_monday.LAB.grade(tmp_path)
    assert verdict.outcome == PASSED, verdict.text()
    assert "to the bit" in verdict.lines[0] and re.match(r"page.md has \d+ blanks", verdict.lines[1])
    (tmp_path / "page.md").write_text("All of it.", "utf-8")
    assert "for a person to read" in lab_f_monday.LAB.grade(tmp_path).lines[1]


def test_the_stub_is_not_attempted(tmp_path: Path) -> None:
    shutil.copy(LABS / "f_monday" / "to_pair.py", tmp_path)
    assert lab_f_monday.LAB.grade(tmp_path).outcome == NOT_ATTEMPTED


def test_a_file_that_does_not_run_is_said(tmp_path: Path) -> None:
    (tmp_path / "to_pair.py").write_text("def to_pair(:\n", "utf-8")
    assert lab_f_monday.LAB.grade(tmp_path).outcome == DOES_NOT_RUN


@pytest.mark.parametrize("mistake", CONVERSION.mistakes, ids=lambda mistake: mistake.name)
def test_a_known_mistake_fails_small_and_under_its_own_name(mistake: Mistake) -> None:
    verdict = grade(CONVERSION, mistake.function)
    assert verdict.outcome in (WRONG, RAISES) and verdict.mistake == mistake.name, verdict.text()
    assert len(verdict.lines) <= 6
    assert any(lab_f_monday.difference(mistake.function, case) for case in CONVERSION.fixed)


def test_right_for_small_adapters_and_wrong_for_the_pirate_is_wrong(tmp_path: Path) -> None:
    """What no small adapter has: four layers."""
    source = (TEACHER / "f_to_pair.py").read_text("utf-8")
    wrong = source.replace("[NUMBERS[name], layer, r]", "[NUMBERS[name], min(layer, 1), r]")
    assert wrong != source
    (tmp_path / "to_pair.py").write_text(wrong, "utf-8")
    verdict = lab_f_monday.LAB.grade(tmp_path)
    assert verdict.outcome == WRONG and "the pirate's pair is not" in verdict.lines[0]


def test_what_is_graded_is_what_convert_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files of `loracle convert`, read by NumPy, against the solution's arrays."""
    import numpy as np

    assert cli.main(["convert", "pirate", str(tmp_path / "pair"), "--to", "trtllm", "--dtype", "float32"]) == 0
    capsys.readouterr()
    arrays = tuple(np.load(tmp_path / "pair" / f"model.lora_{name}.npy") for name in ("weights", "config"))
    shutil.copy(TEACHER / "f_to_pair.py", tmp_path / "to_pair.py")
    function, _ = lab_f_monday.load_function(tmp_path / "to_pair.py", "to_pair")
    adapter = lab_f_monday.voices.voice("pirate")
    lora = {key: (one.A.astype(np.float32), one.B.astype(np.float32)) for key, one in adapter.lora.items()}
    yours = function(lora, adapter.config.lora_alpha, adapter.config.use_rslora)
    assert lab_f_monday.rows(yours) == lab_f_monday.rows(arrays)
