"""What a learner's file or folder may do to the grader: each is a sentence, and none breaks a class."""

import os
import signal
import sys
from pathlib import Path

import pytest

from refimpl import cli, learn
from refimpl.errors import LoracleError
from refimpl.learn import grade_file as grading
from refimpl.learn import report
from refimpl.learn.grade_file import grade_files, how_it_ended, is_stub, verdict_from
from refimpl.learn.graders import lab_e_bug_hunt, lab_f_monday
from refimpl.learn.progress import read_progress
from refimpl.learn.report_files import plain
from refimpl.learn.verdict import DOES_NOT_RUN, PASSED, RAISES, WRONG
from refimpl.oracle.bugs.blind import HUNT

UNIT = learn.load("ch07_select_victim")
DEF = "def select_victim(last_used, ref_counts):\n"
RIGHT = (
    "    idle = [slot for slot in last_used if not ref_counts.get(slot)]\n"
    "    return min(idle, key=last_used.get) if idle else None\n"
)
posix = pytest.mark.skipif(os.name != "posix", reason="pipes and limits are of POSIX")

HOSTILE = {
    "a traceback of its own": (
        "import os, sys\n" + DEF + "    sys.stderr.write('Traceback\\nOops: no'); sys.stderr.flush(); os._exit(1)\n",
        DOES_NOT_RUN,
        "The grader stopped: Oops: no.",
    ),
    "its working folder": ("import os, shutil\nshutil.rmtree(os.getcwd())\n" + DEF + RIGHT, PASSED, ""),
    "a trace function": ("import sys\nsys.settrace(lambda *_: 1 / 0)\n" + DEF + RIGHT, DOES_NOT_RUN, ""),
    "builtins": ("import builtins\nbuiltins.len = None\n" + DEF + RIGHT, DOES_NOT_RUN, "The grader stopped: TypeError"),
    "a pipe for its verdict": (
        "import os, sys\nos.mkfifo(sys.argv[4])\nos._exit(0)\n",
        DOES_NOT_RUN,
        "its own verdict",
    ),
    "a signal": (
        "import os\nos.kill(os.getpid(), 14)\n" + DEF + RIGHT,
        DOES_NOT_RUN,
        "A signal ended the process (SIGALRM)",
    ),
    "stderr without an end": (
        "import os\n" + DEF + "    while True: os.write(2, b'x' * 10**7)\n",
        RAISES,
        "File too large",
    ),
}


@posix
def test_whatever_a_file_does_to_the_grader_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "START", 20.0)
    files = []
    for i, (text, _, _) in enumerate(HOSTILE.values()):
        files.append(tmp_path / str(i) / "ch07_select_victim.py")
        files[-1].parent.mkdir()
        files[-1].write_text(text)
    verdicts = grade_files([(UNIT, file) for file in files], 30.0)
    for name, verdict in zip(HOSTILE, verdicts, strict=True):
        _, outcome, words = HOSTILE[name]
        assert verdict.outcome == outcome and words in " ".join(verdict.lines), f"{name}: {verdict.text()}"


FORGED = (
    '{"outcome": "wrong", "lines": 5}',
    '{"exercise": "", "outcome": "wrong", "lines": [], "consequence": "", "mistake": "", "says": "", "links": 3, '
    '"cases": 1, "seconds": 1.0, "printed": ""}',
    '{"exercise": "", "outcome": "wrong", "lines": [], "consequence": "", "mistake": "", "says": "", "links": [], '
    '"cases": 1, "seconds": Infinity, "printed": ""}',
)


@pytest.mark.parametrize("text", FORGED)
def test_a_verdict_of_another_form_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text(text)
    assert verdict_from(tmp_path / "verdict.json", "x").lines == ["It wrote over its own verdict."]


@posix
def test_pipes_and_folders_in_the_place_of_files_are_not_waited_for(tmp_path: Path) -> None:
    ada = tmp_path / "ada"
    ada.mkdir()
    os.mkfifo(ada / "progress.json")
    os.mkfifo(ada / f"{UNIT.name}.py")
    (ada / "ch05_schedule.py").mkdir()
    assert read_progress(ada) is None and not is_stub(UNIT, ada / f"{UNIT.name}.py")
    assert {row.outcome for row in report.report([tmp_path]).rows} == {"no file"}


def test_how_a_process_ended() -> None:
    assert "recursion without an end" in how_it_ended(-signal.SIGSEGV, "")
    assert "no reason is said" in how_it_ended(1, "  + Exception Group Traceback\n  +-----")


def test_a_folder_that_may_not_be_entered_does_not_break_a_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "ch05_schedule.py").write_text("x")
    (tmp_path / "locked").mkdir()
    exists, listdir = os.path.exists, os.listdir

    def denied(path: Path) -> bool:
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied")
        return exists(path)

    monkeypatch.setattr(Path, "exists", denied)
    assert list(report.learners_in([tmp_path])) == ["ada", "locked"]

    def unlistable(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied") if path == tmp_path else FileNotFoundError

    monkeypatch.setattr(os, "listdir", unlistable)
    with pytest.raises(LoracleError, match="cannot be read"):
        report.learners_in([tmp_path])
    monkeypatch.setattr(os, "listdir", listdir)


@pytest.mark.parametrize("text", ["=1", " =1", "\t=1", "＝1", "|cmd", "@x", "-1", "\n=1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert plain(text) == f"'{text}"


@posix
def test_a_deleted_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone() -> str:
        raise FileNotFoundError

    monkeypatch.setattr("refimpl.commands.learn.os.getcwd", gone)
    assert cli.main(["learn", "list"]) == 2
    assert "was deleted: cd into another one" in capsys.readouterr().err


ANSWERS = {
    'class = ["A"]': "class ['A']: one of",
    "module = 3": "module '3'",
    "module = true": "module 'True'",
    'cause = ["x"]': "cause ['x']",
    "cause = {a = 1}": "cause {'a': 1}",
}


@pytest.mark.parametrize("line", ANSWERS)
def test_an_answer_of_another_type_is_a_sentence(line: str, tmp_path: Path) -> None:
    (tmp_path / "answers.toml").write_text(f"[{HUNT[0]}]\n{line}\n", "utf-8-sig")  # as Windows' Notepad saves it
    verdict = lab_e_bug_hunt.LAB.grade(tmp_path)
    assert verdict.outcome == DOES_NOT_RUN and ANSWERS[line] in verdict.lines[0]


TO_PAIR = Path(__file__).parents[2] / "teacher" / "labs" / "f_to_pair.py"
FOUR_MODULES = "\nNUMBERS = {name: NUMBERS[name] for name in ('q_proj', 'gate_proj', 'up_proj', 'down_proj')}\n"


def test_a_conversion_that_knows_the_small_adapters_alone_is_reported_so(tmp_path: Path) -> None:
    assert "lab_f_monday" in lab_f_monday.LAB.grade(tmp_path).lines[0]
    (tmp_path / "to_pair.py").write_text(TO_PAIR.read_text("utf-8") + FOUR_MODULES, "utf-8")
    verdict = lab_f_monday.LAB.grade(tmp_path)
    assert verdict.outcome == WRONG and "pirate's, which has more modules, it raises KeyError" in verdict.lines[0]
    assert "of your file)" in verdict.lines[0] and sys.exc_info() == (None, None, None)
