"""What a newcomer meets first: suggestions, names given twice, warnings, interrupts, threads, file modes."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl import cli, tiny
from refimpl.cli import COMMANDS
from refimpl.commands import demo
from refimpl.cuda.launch import start
from refimpl.errors import KernelError


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Return (exit code, stdout, stderr) of one command."""
    try:
        code = cli.main(argv)
    except SystemExit as error:
        code = int(error.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


MISTAKES = {
    "an option with a letter too few": (
        ["generate", "--temprature", "1", "--prompt", "base:x"],
        "loracle generate: unrecognized arguments: --temprature 1; did you mean --temperature? (see loracle generate",
    ),
    "an option of another tool": (["generate", "--max-tokens=3"], "did you mean --max-new-tokens?"),
    "an option like no other": (["demo", "--voices"], "--voices (see loracle demo --help)"),
    "a command": (["generat"], "did you mean 'generate'?"),
    "a choice": (["demo", "--ops", "cda"], "did you mean 'cuda'?"),
    "an adapter": (["generate", "--prompt", "pirat:x"], "did you mean 'pirate'?"),
    "a name given twice": (
        ["generate", "--adapter", "a=robot", "--adapter", "a=bard", "--prompt", "a:x"],
        "the name 'a' is given twice, first for robot",
    ),
    "the name of an embedded voice": (
        ["generate", "--adapter", "pirate=bard", "--prompt", "pirate:x"],
        "'pirate' is a voice of the embedded model",
    ),
    "another ending": (["logits", "--prompt", "base:x", "--output", "out.txt"], "let its name end in .safetensors"),
    "a checker without kernels": (["demo", "--check"], "give --ops cuda"),
    "a device that is not there": (["demo", "--device", "tpu"], "'tpu'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_was_meant(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, words = MISTAKES[mistake]
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and words in err, err


def test_a_voice_may_be_named_by_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "generate", "--adapter", "bard=bard", "--prompt", "bard:x", "--max-new-tokens", "1")
    assert (code, err) == (0, "")


def test_more_tokens_than_the_model_has_positions_for_cost_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = f"base:{tiny.DEMO_PROMPTS[0].strip()}"
    code, out, err = run(capsys, "generate", "--prompt", prompt, "--max-new-tokens", "999999999")
    assert (code, err) == (0, "") and "Traveller" in out


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_is_readable_by_whom_the_umask_says(
    mask: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "truth.safetensors"
    before = os.umask(mask)
    try:
        assert run(capsys, "logits", "--prompt", "base:x", "--output", str(file))[0] == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("where", ["refimpl.cli.parser", "refimpl.commands.demo.run"])
def test_an_interrupt_ends_any_command_with_130_and_no_word(
    where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    assert run(capsys, "demo") == (130, "", "")


def test_only_our_own_warnings_are_said_in_one_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("""
import sys, warnings
from refimpl import cli
from refimpl.commands import demo
from refimpl.errors import AdapterWarning

def run(_):
    for _ in range(2):
        warnings.warn("an adapter of rank 0", AdapterWarning)
        warnings.warn("of another library", UserWarning)
        warnings.warn("an open file", ResourceWarning)
    return 0

demo.run = run
sys.exit(cli.main(["demo"]))
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.count("loracle: warning: an adapter of rank 0\n") == 2
    assert "an open file" not in done.stderr
    assert done.stderr.count("script.py:10: UserWarning: of another library") == 1


def test_a_wrong_kernel_is_reported_as_it_is_and_no_bug_of_ours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> int:
        raise KernelError("g++ ...\nlora.cu:3: error: expected ';'", kind="does not compile")

    monkeypatch.setattr(demo, "run", broken)
    assert run(capsys, "demo") == (1, "", "loracle demo: g++ ...\nlora.cu:3: error: expected ';'\n")


THREADS = {
    ("demo",): True,
    ("generate", "--model", "tiny"): True,
    ("generate", "--model=tiny"): True,
    ("check", "--engine", "numpy", "--model=random"): True,
    ("generate", "--model", "DIR"): False,
    ("generate", "--model=DIR"): False,
    ("generate", "--model=DIR", "--adapter", "tiny=DIR"): False,
    ("generate", "--model", "DIR", "--prompt", "random"): False,
    ("check", "--model-name", "served", "--url", "http://x"): True,
}


@pytest.mark.parametrize("argv", THREADS)
def test_both_spellings_of_the_model_choose_the_same_number_of_threads(argv: tuple[str, ...]) -> None:
    assert cli.one_thread_is_faster(argv) == THREADS[argv]


def test_the_number_of_threads_is_chosen_before_numpy_is_there() -> None:
    script = """
import os, sys
from refimpl import cli
os.environ.pop("OPENBLAS_NUM_THREADS", None)
def parser():
    assert "numpy" not in sys.modules
    print(os.environ.get("OPENBLAS_NUM_THREADS"))
    raise KeyboardInterrupt
cli.parser = parser
sys.exit(cli.main([sys.argv[1]]))
"""
    for option, threads in (("--model=DIR", "None"), ("--model=tiny", "1")):
        done = subprocess.run([sys.executable, "-c", script, option], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (130, threads), done.stderr


def test_the_demo_says_what_was_shown_and_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "demo", "--max-new-tokens", "2")
    words = " ".join(out.split())
    assert code == 0
    assert "One set of base weights answered all five in one batch" in words
    assert "of its own adapter, the one in the slot adapter_id (-1: none)." in words
    command = words.rpartition("Next: loracle ")[2].rstrip(".")
    assert command in COMMANDS


def test_a_folder_that_is_nothing_is_reported_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "inspect", str(tmp_path / "nope"))
    assert code == 2 and out.startswith("problem: ") and "unknown" not in out


def test_the_guide_explains_where_its_weights_are_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert "LORACLE_MODELS=~/models loracle guide" in run(capsys, "guide", "--help")[1]


def test_the_demo_runs_under_the_checker(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs inside `--check` is checked: the demo itself takes a minute under it on a CPU."""
    inside: list[bool] = []
    monkeypatch.setattr(demo, "play", lambda args: inside.append(start._checked.get() is not None) or 0)
    for argv in (["demo", "--ops", "cuda"], ["demo", "--ops", "cuda", "--check"]):
        assert run(capsys, *argv)[0] == 0
    assert inside == [False, True]
