"""A learner's file: whatever it does, the verdict is a sentence; and the folder, of which nothing of theirs is lost."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refimpl import cli, learn
from refimpl.errors import LoracleError
from refimpl.learn import grade_file as grading
from refimpl.learn import load_file
from refimpl.learn.folder import Course, complete, content_for, open_course, place_in, reset
from refimpl.learn.grade_file import grade_file, grade_files
from refimpl.learn.grade_process import TooMuchMemory, grade_exercise
from refimpl.learn.load_file import DoesNotRun, load_function
from refimpl.learn.progress import Progress, read_progress
from refimpl.learn.units import stub, unit_named, units
from refimpl.learn.verdict import DOES_NOT_RUN, NOT_ATTEMPTED, PASSED, RAISES, TOO_SLOW, WRONG, Verdict
from refimpl.learn.watch import changes

UNIT = learn.load("ch06_prefix_key")
DEF = "def prefix_key(parent, token_ids, base, p, adapters):\n"
SOLUTION = Path(__file__).parents[2] / "teacher" / "solutions" / "ch06_prefix_key.py"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ch06_prefix_key.py"


UNREADABLE = {
    "": "There is no function prefix_key in it.",
    "def prefix_kye(a): pass": "There is no function prefix_key in it; did you mean 'prefix_kye'?",
    "prefix_key = 3": "prefix_key is not a function in it, but int.",
    DEF + "    return (1,\n": "SyntaxError: '(' was never closed",
    DEF + "\treturn 1\n        return 2\n": "TabError: inconsistent use of tabs and spaces in indentation",
    "import sys\nsys.exit()": "It ends the program with sys.exit() (line 2).",
    "import nothing_like_it": "ModuleNotFoundError: No module named 'nothing_like_it' (line 1)",
    "x = 1\n1 / 0": "ZeroDivisionError: division by zero (line 2)",
    "# -*- coding: klingon -*-": "nor in the encoding that it names",
    "\0": "null bytes",
    "(" * 500 + ")" * 500: "too many nested parentheses",
}


@pytest.mark.parametrize("text", UNREADABLE, ids=[words[:24] for words in UNREADABLE.values()])
def test_a_file_without_the_function_says_why(text: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(DoesNotRun) as error:
        load_function(file, "prefix_key")
    assert UNREADABLE[text] in error.value.lines[-1] or UNREADABLE[text] in str(error.value)


def test_a_syntax_error_has_a_caret_under_what_is_wrong(file: Path) -> None:
    file.write_text("x = 1\nif x:\n    y = = 2\n")
    with pytest.raises(DoesNotRun) as error:
        load_function(file, "prefix_key")
    assert error.value.lines == ["line 3: y = = 2", "            ^", "SyntaxError: invalid syntax"]


def test_what_cannot_be_read_is_a_sentence(file: Path) -> None:
    file.write_bytes(b"# caf\xe9\n")
    with pytest.raises(DoesNotRun, match="no text in UTF-8"):
        load_function(file, "prefix_key")
    file.unlink()
    with pytest.raises(DoesNotRun, match="reset ch06_prefix_key"):
        load_function(file, "prefix_key")
    file.mkdir()
    with pytest.raises(DoesNotRun, match="cannot be read"):
        load_function(file, "prefix_key")


def test_a_file_in_another_encoding_that_says_so_is_read(file: Path) -> None:
    file.write_bytes(b"# -*- coding: latin-1 -*-\nprint('caf\xe9')\n" + DEF.encode() + b"    return 'caf\xe9'\n")
    function, printed = load_function(file, "prefix_key")
    assert function(0, 0, 0, 0, 0) == "café" and printed == "café\n"


def test_other_parameters_than_the_stubs_are_named(file: Path) -> None:
    file.write_text("def prefix_key(parent, token_ids):\n    return b''\n")
    verdict = grade_exercise(UNIT, file, 10)
    assert verdict.outcome == DOES_NOT_RUN
    line = "prefix_key is called with (parent, token_ids, base, p, adapters): yours takes (parent, token_ids)."
    assert verdict.lines == [line]
    file.write_text("def prefix_key(*anything, more=1):\n    return b''\n")
    assert grade_exercise(UNIT, file, 10).outcome == WRONG


ENDS = {
    "import sys\n" + DEF + "    sys.exit(3)\n": "ends the program with sys.exit(): a function returns (line 3",
    DEF + "    raise KeyboardInterrupt\n": "raises KeyboardInterrupt (line 2",
    DEF + "    raise MemoryError\n": "takes more than 1.1 GB of memory (line 2",
}


@pytest.mark.parametrize("text", ENDS, ids=["exit", "interrupt", "memory"])
def test_what_ends_a_program_ends_the_grading_in_one_sentence(text: str, file: Path) -> None:
    file.write_text(text)
    verdict = grade_exercise(UNIT, file, 10)
    assert verdict.outcome == RAISES and verdict.lines == [ENDS[text] + " of your file)"]
    assert "smallest case" not in verdict.text()


def test_a_loop_while_the_file_is_read(file: Path) -> None:
    file.write_text("while True: pass")
    verdict = grade_exercise(UNIT, file, 0.2)
    assert verdict.outcome == TOO_SLOW and "before the function was called" in verdict.lines[0]


def test_a_bug_of_the_grader_is_not_the_learners(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(DEF + "    return b''\n")
    monkeypatch.setattr("refimpl.learn.grade_process.grade", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        grade_exercise(UNIT, file, 10)


HOSTILE = {
    "exit 0": ("import os\n" + DEF + "    os._exit(0)\n", DOES_NOT_RUN, "exit code 0"),
    "exit 1": ("import os\nos._exit(1)\n", DOES_NOT_RUN, "exit code 1"),
    "a loop that catches everything": (
        DEF + "    while True:\n        try:\n            while True: pass\n        except BaseException: pass\n",
        TOO_SLOW,
        "loop without an end",
    ),
    "a crash": ("import ctypes\n" + DEF + "    ctypes.string_at(0)\n", DOES_NOT_RUN, "crashed the process (SIGSEGV)"),
    "its own verdict": (
        "import os, sys\nopen(sys.argv[4], 'w').write('{\"outcome\": \"passed\"}')\nos._exit(0)\n",
        DOES_NOT_RUN,
        "wrote over its own verdict",
    ),
    "a terminal's language": (DEF + "    raise ValueError('\\x1b[2J\\n')\n", RAISES, r"ValueError: \x1b[2J\n (line 2"),
}


def test_what_no_process_survives_is_a_sentence_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "START", 8.0)
    files = []
    for i, (text, _, _) in enumerate(HOSTILE.values()):
        files.append(tmp_path / f"learner{i}" / "ch06_prefix_key.py")
        files[-1].parent.mkdir()
        files[-1].write_text(text)
    steps: list[tuple[int, int]] = []
    verdicts = grade_files([(UNIT, file) for file in files], 2.0, lambda done, total: steps.append((done, total)))
    for verdict, (_, outcome, words) in zip(verdicts, HOSTILE.values(), strict=True):
        assert verdict.outcome == outcome and words in " ".join(verdict.lines), verdict.text()
    assert steps == [(i, len(files)) for i in range(1, len(files) + 1)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of a process is limited on Linux")
def test_memory_has_a_limit_and_what_a_file_started_ends_with_it(file: Path, tmp_path: Path) -> None:
    child = "import subprocess\nchild = subprocess.Popen(['sleep', '100'])\n"
    child += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
    file.write_text(child + DEF + "    rows = []\n    while True: rows.append(bytearray(10**8))\n")
    verdict = grade_file(UNIT, file, 30)
    assert verdict.outcome == RAISES and "takes more than 1.1 GB of memory (line 6" in verdict.lines[0]
    deadline = time.monotonic() + 5
    while Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat").read_text().split()[2] == "Z":
            break  # ended, and not yet collected by whoever adopts orphans here
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_a_stub_costs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading.Graders, "run", None)
    assert grade_file(UNIT, stub(UNIT)).outcome == NOT_ATTEMPTED


def test_every_name_of_a_unit() -> None:
    for name in (
        "ch06_prefix_key",
        "6",
        "06",
        "ch06",
        "ch6",
        "CH06",
        "prefix_key",
        "ch06_prefix_cache",
        "x/ch06_prefix_key.py",
    ):
        assert unit_named(name) is UNIT
    with pytest.raises(LoracleError, match="did you mean 'prefix_key'"):
        unit_named("prefixkey")
    with pytest.raises(LoracleError, match=r"it has .*ch06_prefix_key"):
        unit_named("nothing of the kind")


def test_units_are_in_the_order_of_the_course() -> None:
    names = [unit.name for unit in units()]
    assert names == sorted(names) and "ch06_prefix_key" in names


@pytest.fixture
def course(tmp_path: Path) -> Course:
    return open_course(tmp_path / "deep" / "course")


def test_the_folder_has_what_is_read_and_edited(course: Course, capsys: pytest.CaptureFixture[str]) -> None:
    names = {file.name for file in course.folder.iterdir()}
    assert {"AGENTS.md", "test_course.py", "progress.json", "ch06_prefix_key.py"} <= names
    assert course.place(UNIT).read_bytes() == stub(UNIT).read_bytes()
    open_course(course.folder)
    assert capsys.readouterr() == ("", "")  # it is made once


def test_nothing_of_the_learners_is_written_over(course: Course) -> None:
    mine = course.place(UNIT)
    mine.write_text("mine")
    (course.folder / "AGENTS.md").write_text("mine, too")
    again = open_course(course.folder)
    complete(again)
    assert mine.read_text() == "mine" and (course.folder / "AGENTS.md").read_text() == "mine, too"


def test_a_folder_of_an_older_version_gets_what_is_new(course: Course) -> None:
    """As if the older version had had another stub and no AGENTS.md, and the learner had changed one more file."""
    older, progress = b"def prefix_key():\n    raise NotImplementedError\n", course.progress
    course.place(UNIT).write_bytes(older)
    progress.copies["ch06_prefix_key.py"] = __import__("hashlib").sha256(older).hexdigest()
    (course.folder / "AGENTS.md").unlink()
    course.save()
    again = open_course(course.folder)
    assert course.place(UNIT).read_bytes() == stub(UNIT).read_bytes()  # nobody had touched it
    assert (course.folder / "AGENTS.md").exists() and again.progress.copies["AGENTS.md"]


def test_links_of_a_page_lead_to_files_wherever_the_page_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a b.md").write_text("")
    page = tmp_path / "page.md"
    page.write_text("[1](a b.md) [2](page.md#part) [3](nowhere.md) [4](https://a.b/c) [5](#here)", "utf-8")
    expected = f"[1](a b.md) [2]({page.as_uri()}#part) [3](nowhere.md) [4](https://a.b/c) [5](#here)"
    assert content_for(page) == expected.encode()  # a blank is no link in Markdown


def test_no_link_of_a_lab_is_dead(course: Course) -> None:
    pages = [*course.folder.glob("*.md"), *course.folder.glob("labs/*/*.md")]
    links = [link for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))]
    assert len(pages) > 2
    assert [link for link in links if "://" not in link] == []


def test_a_deleted_file_stays_deleted_until_reset(course: Course) -> None:
    course.place(UNIT).unlink()
    again = open_course(course.folder)
    assert not again.place(UNIT).exists()
    assert reset(again, UNIT) == [(again.place(UNIT), None)] and again.place(UNIT).exists()


def test_reset_keeps_what_was_there_under_a_number(course: Course) -> None:
    for number in (1, 2):
        course.place(UNIT).write_text(f"mine {number}")
        course.progress.note(Verdict(UNIT.name, PASSED))
        kept = course.folder / f"ch06_prefix_key.before-{number}.py"
        assert reset(course, UNIT) == [(course.place(UNIT), kept)]
        assert kept.read_text() == f"mine {number}" and not course.progress.unit(UNIT.name).passed
    assert reset(course, UNIT) == [(course.place(UNIT), None)]  # a stub is not worth keeping


def test_progress_is_read_back_and_counts(tmp_path: Path) -> None:
    progress = Progress(copies={"a": "b"})
    progress.note(Verdict("x", WRONG, mistake="m"), "digest")
    progress.note(Verdict("x", NOT_ATTEMPTED))
    progress.unit("x").hints = 2
    progress.save(tmp_path)
    back = read_progress(tmp_path)
    assert (
        back == progress
        and back is not None
        and vars(back.unit("x"))
        == {
            "outcome": NOT_ATTEMPTED,
            "mistake": "",
            "tries": 1,
            "hints": 2,
            "graded": "",
            "passed": False,
        }
    )
    assert [file.name for file in tmp_path.iterdir()] == ["progress.json"]


def test_a_try_that_fails_takes_no_pass_away(
    course: Course, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for verdict in (Verdict("ch01_linear", PASSED), Verdict("ch01_linear", WRONG)):
        course.progress.note(verdict, "digest")
    course.save()
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["learn", "list", "--folder", str(course.folder)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("passed;", "wrong")) and f"1 of {len(units())} passed" in out
    assert all(f" {unit.name} " in out for unit in units())  # in one piece
    older = {"units": {"x": {"outcome": PASSED}}, "copies": {}}
    (course.folder / "progress.json").write_text(json.dumps(older))
    progress = read_progress(course.folder)
    assert progress is not None and progress.unit("x").passed


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"\xff",
    b'{"units": 3, "copies": {}}',
    b'{"units": {"x": {"tries": -1}}, "copies": {}}',
    b'{"units": {"x": {"tries": true}}, "copies": {}}',
    b'{"units": {"x": {"outcome": 1}}, "copies": {}}',
    b'{"units": {}, "copies": {"a": 1}}',
    b"[" * 100000,
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_progress_is_put_aside_with_one_line(
    content: bytes, course: Course, capsys: pytest.CaptureFixture[str]
) -> None:
    (course.folder / "progress.json").write_bytes(content)
    capsys.readouterr()
    again = open_course(course.folder)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "was damaged: it is progress.damaged-1.json now" in lines[0]
    assert (course.folder / "progress.damaged-1.json").read_bytes() == content
    assert json.loads((course.folder / "progress.json").read_text()) and again.progress.units == {}


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "course"):
        with pytest.raises(LoracleError, match="cannot hold the course"):
            open_course(folder)


def test_a_save_is_seen_once_and_a_missing_file_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("1")
    saves = changes([file], 0.01)
    next(saves)
    file.unlink()
    import threading

    threading.Timer(0.1, lambda: file.write_text("1 2")).start()
    began = time.monotonic()
    next(saves)
    assert time.monotonic() - began > 0.08 and file.read_text() == "1 2"


def test_pytest_in_the_folder_has_a_test_for_each_exercise(course: Course) -> None:
    course.place(UNIT).write_text(SOLUTION.read_text())
    others = [exercise for exercise in learn.exercises() if exercise is not UNIT]
    root = Path(learn.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(course.folder)],
        cwd=course.folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert not others or (f"{len(others)} failed" in done.stdout and "not attempted" in done.stdout)


def test_the_place_of_a_unit(tmp_path: Path) -> None:
    for unit in units():
        assert place_in(tmp_path, unit).is_relative_to(tmp_path)


def test_too_much_memory_is_no_exception() -> None:
    """Hypothesis would look for a smaller case, and fill the memory each time."""
    assert not issubclass(TooMuchMemory, Exception)
    assert load_file.OUTSIDE
