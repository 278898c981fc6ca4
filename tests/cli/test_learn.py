"""loracle learn as a learner uses it: what is printed for people and for machines, and the exit codes."""

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from refimpl import cli, learn
from refimpl.commands import check
from refimpl.commands.learn_screen import show_line
from refimpl.learn import your_engine

UNIT = learn.load("ch06_prefix_key")
ROOT = Path(__file__).parents[2]
SOLUTION = (ROOT / "teacher" / "solutions" / "ch06_prefix_key.py").read_text()
LEAKY = """
import hashlib

def prefix_key(parent, token_ids, base, p, adapters):
    return hashlib.sha256(parent + str(list(token_ids)).encode() + base + repr(p).encode()).digest()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORACLE_COURSE", raising=False)
    return tmp_path / "loracle-course"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Return (exit code, stdout, stderr) of `loracle learn`."""
    try:
        code = cli.main(["learn", *argv])
    except SystemExit as error:
        code = int(error.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def body(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, Any]:
    code, out, _ = run(capsys, *argv, "--json")
    return code, json.loads(out)


def test_the_first_command_makes_the_folder_and_says_what_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "next", "6")
    assert code == 0 and err.startswith(f"made loracle-course{os.sep}") and len(err.splitlines()) == 1
    for words in ("ch06_prefix_key: ", f"({UNIT.minutes} minutes)", "edit   loracle-course", "loracle learn check 6"):
        assert words in out
    assert run(capsys)[0::2] == (0, "")  # `loracle learn` alone is next
    code, data = body(capsys, "next", "6")
    assert data["edit"] == [str(Path("loracle-course/ch06_prefix_key.py"))] and data["minutes"] == UNIT.minutes


def test_the_folder_is_where_it_is_wanted(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACLE_COURSE", "elsewhere")
    run(capsys, "list")
    assert Path("elsewhere/progress.json").exists()
    _, out, _ = run(capsys, "next", "6", "--folder", "a b")
    assert Path("a b/progress.json").exists() and "loracle learn check 6 --folder 'a b'" in out
    assert not folder.exists()


def test_inside_of_the_folder_no_second_one_is_made(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "next")
    for inside, edited in ((folder, "ch06_prefix_key.py"), (folder / "chapters", "../ch06_prefix_key.py")):
        monkeypatch.chdir(inside)
        code, data = body(capsys, "next", "6")
        assert code == 0 and data["edit"] == [str(Path(edited))] and not (inside / "loracle-course").exists()


@pytest.mark.parametrize(
    "argv", ["check --folder mine 6", "--folder mine check 6", "--json check --folder mine 6", "check 6 --folder mine"]
)
def test_an_action_and_a_name_may_stand_behind_an_option(
    argv: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, *argv.split())
    assert code == 1 and "not attempted" in out and "ch06_prefix_key" in out and Path("mine/progress.json").exists()


def test_long_lines_are_cut_between_words_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"  In the engine: {'a word ' * 20}https://github.com/NVIDIA/TensorRT-LLM/issues/{'1' * 60}"
    show_line(Console(width=80, force_terminal=True, color_system=None), line)
    first, *others = capsys.readouterr().out.splitlines()
    assert len(first) <= 80 and all(other.startswith("    ") for other in others)
    assert others[-1].strip() == line.split()[-1]
    show_line(Console(width=80, force_terminal=False), line)
    assert capsys.readouterr().out == line + "\n"


def test_a_wrong_answer_is_named_with_what_a_tenant_would_see_and_its_links(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "next")
    (folder / "ch06_prefix_key.py").write_text(LEAKY)
    code, out, err = run(capsys, "check", "prefix_key")
    assert (code, err) == (1, "")
    for words in ("not yet", "known mistake, without_adapter", "In the engine:", "https://github.com/vllm-project"):
        assert words in out
    code, verdict = body(capsys, "check", "6")
    assert code == 1 and verdict["mistake"] == "without_adapter" and verdict["tries"] == 2 and verdict["links"]


def test_a_right_answer_passes_and_what_is_next_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "next")
    (folder / "ch06_prefix_key.py").write_text(SOLUTION)
    code, out, _ = run(capsys, "check", "6")
    assert code == 0 and "passed" in out and ("next: ch" in out or "All 1 of" in out)
    _, rows = body(capsys, "list")
    mine = next(row for row in rows if row["unit"] == UNIT.name)
    assert (mine["outcome"], mine["tries"]) == ("passed", 1) and len(rows) == len(learn.exercise_names())


def test_not_attempted_is_1_and_says_which_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", "6")
    assert code == 1 and "not attempted" in out and "edit loracle-course" in out
    assert body(capsys, "check", "6")[1]["tries"] == 0


def test_hints_are_three_steps_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, text in enumerate(UNIT.hints, 1):
        code, out, _ = run(capsys, "hint", "6")
        assert code == 0 and f"hint {number} of 3: {text}" in " ".join(out.split())
    assert "hint 3 of 3, the last, again: " in run(capsys, "hint", "6")[1]
    assert body(capsys, "next", "6")[1]["hints"] == 3


def test_reset_keeps_the_old_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "next")
    (folder / "ch06_prefix_key.py").write_text(LEAKY)
    code, out, _ = run(capsys, "reset", "6")
    assert code == 0 and "ch06_prefix_key.py is new; yours is loracle-course" in out
    assert (folder / "ch06_prefix_key.before-1.py").read_text() == LEAKY
    code, data = body(capsys, "reset", "6")
    assert data["files"][0]["kept"] is None


def test_all_grades_what_somebody_brings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bring = Path("brought")
    bring.mkdir()
    (bring / "ch06_prefix_key.py").write_text(LEAKY)
    code, out, _ = run(capsys, "check", "--all", "--folder", "brought")
    assert code == 1 and "without_adapter" in out and f"0 of {len(learn.exercise_names())} passed" in out
    assert (bring / "ch06_prefix_key.py").read_text() == LEAKY


MISTAKES = {
    "an action": (["nxt"], "invalid choice: 'nxt'"),
    "a chapter without an action": (["1"], "a chapter comes after the action: next 1, check 1"),
    "a unit": (["check", "prefixkey"], "the course has no 'prefixkey'; did you mean 'prefix_key'?"),
    "two units": (["check", "6", "ch06"], "one NAME at a time, not 6 ch06"),
    "all and one": (["check", "6", "--all"], "--all or a NAME"),
    "a limit": (["check", "6", "--limit", "0"], "--limit 0: expected seconds above 0"),
    "no number": (["check", "6", "--limit", "nan"], "--limit nan"),
    "an option of another action": (["list", "--all"], "--all belongs to `loracle learn check`"),
    "a name for list": (["list", "6"], "list takes no NAME (6)"),
    "an engine of nothing": (["engine", "--folder", "nowhere"], "nowhere: there is no such folder"),
    "a folder that is a file": (["list", "--folder", "file"], "file: cannot hold the course ("),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_2(mistake: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    run(capsys, "list")
    argv, words = MISTAKES[mistake]
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and words in err, err


def test_a_deleted_file_is_one_line_and_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "next")
    (folder / "ch06_prefix_key.py").unlink()
    code, _, err = run(capsys, "check", "6")
    assert code == 2 and "is not there: `loracle learn reset ch06_prefix_key` brings it back" in err
    assert "is not there" in run(capsys, "next", "6")[1]


def test_watch_ends_when_it_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "next")
    (folder / "ch06_prefix_key.py").write_text(SOLUTION)
    code, out, _ = run(capsys, "watch", "6")
    assert code == 0 and "every save is a check" in out and "passed" in out


@pytest.mark.skipif(os.name != "posix", reason="a signal is sent to a process")
def test_watch_grades_every_save_and_an_interrupt_ends_it_with_130_and_no_word(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "next")
    with start("watch", "6", "--json") as watching:
        assert json.loads(line_of(watching))["outcome"] == "not attempted"
        (folder / "ch06_prefix_key.py").write_text("def prefix_key(:")
        assert json.loads(line_of(watching))["outcome"] == "does not run"
        watching.send_signal(signal.SIGINT)
        try:
            _, err = watching.communicate(timeout=60)
        finally:
            watching.kill()
        assert (watching.returncode, err) == (130, "")


def start(*argv: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "refimpl", "learn", *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_no_other_command_waits_for_hypothesis() -> None:
    script = "import sys; from refimpl import cli; cli.parser(); assert 'hypothesis' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_failure_of_a_learners_engine_is_led_back_to_its_chapter(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What finds the chapter is held by tests/learn/test_lab_a.py; here `loracle check` says it, and of no other."""
    monkeypatch.setattr(your_engine, "led_back", lambda repro: f"ch06 of {repro.name}")
    monkeypatch.setattr(check, "write", lambda *_: {"repro": ""})
    for engine, expected in (("learn", {"repro": "", "chapter": "ch06 of kept"}), ("peft", {"repro": ""})):
        result = Namespace(verdict="fail", stopped_by="")
        monkeypatch.setattr(check.checking, "replay", lambda *_, engine=engine: (result, engine))  # noqa: B023
        assert cli.main(["check", "--replay", "kept", "--json"]) == 1
        assert json.loads(capsys.readouterr().out) == expected


def test_engine_serves_the_demo_with_what_passed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "next")
    code, out, _ = run(capsys, "engine")
    assert code == 0 and "No step is yours yet" in out and "Judge it" not in out
    (folder / "ch06_prefix_key.py").write_text(SOLUTION)
    lines = run(capsys, "engine")[1].splitlines()
    assert any(line.startswith("Judge it: ") for line in lines)  # not behind the last line of the table
    code, data = body(capsys, "engine")
    assert code == 0 and data["yours"] == {"ch06_prefix_key": ["prefix_key"]}
    assert "ch02_lora_delta" in data["ours"] and len({answer["text"] for answer in data["texts"]}) == 5
