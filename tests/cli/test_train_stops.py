"""loracle train when something stops it, or would: a signal, a full disk, a reader that leaves, a second run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import cli
from refimpl.commands.signals import STOP
from refimpl.errors import LoracleError
from refimpl.formats.files import new_folder, write_safetensors
from refimpl.training import checkpoint
from refimpl.training.loop import train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals, pipes and limits of POSIX")
ROWS = [{"text": f"Rain drums on the inn number {number}."} for number in range(12)]
SMALL = ("--rank", "2", "--targets", "q_proj", "--batch-tokens", "64")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The arguments of a run to tmp_path / "out"."""
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return ["train", "--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "out"), *SMALL]


@contextlib.contextmanager
def process(argv: list[str]) -> Iterator[Any]:
    """A run in a process of its own; it has ended when the block has."""
    with subprocess.Popen(
        [sys.executable, "-m", "refimpl", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def test_one_run_at_a_time_and_a_signal_stops_it_however_many_follow(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with process([*command, "--epochs", "9999"]) as running:
        assert any("loss" in line for line in running.stdout)  # the first epoch is over
        assert cli.main(command) == 2
        assert "another run is at work on it" in capsys.readouterr().err
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            running.send_signal(number)
            time.sleep(0.002)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and "stopped; the same command with --resume" in err
    assert [file.name for file in (tmp_path / "out.checkpoint").iterdir()] == [checkpoint.STATE_FILE]
    ((step, _),) = checkpoint.steps_done(tmp_path / "out.checkpoint").values()
    assert step > 0


def test_a_second_signal_does_not_end_the_writing_that_the_first_began(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(file: Path, *rest: Any) -> None:
        for number in STOP:
            os.kill(os.getpid(), number)
        write_safetensors(file, *rest)

    def stopped(*args: Any, on_step: Any, **more: Any) -> Any:
        def on_step_and_stop(state: Any) -> None:
            on_step(state)
            os.kill(os.getpid(), signal.SIGTERM)

        return train(*args, on_step=on_step_and_stop, **more)

    monkeypatch.setattr("refimpl.training.checkpoint.write_safetensors", write)
    monkeypatch.setattr("refimpl.commands.train.train", stopped)
    before = {number: signal.getsignal(number) for number in STOP}
    try:
        assert cli.main(command) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    ((step, _),) = checkpoint.steps_done(tmp_path / "out.checkpoint").values()
    assert step == 1 and "--resume" in capsys.readouterr().err


def test_a_run_that_is_done_leaves_signals_as_they_were(command: list[str]) -> None:
    before = [signal.getsignal(number) for number in STOP]
    assert cli.main([*command, "--epochs", "1"]) == 0
    assert [signal.getsignal(number) for number in STOP] == before


def test_whoever_reads_may_leave(command: list[str], tmp_path: Path) -> None:
    with process([*command, "--epochs", "20"]) as running:
        assert "step" in running.stdout.readline()
        running.stdout.close()
        err = running.stderr.read()
        assert (running.wait(timeout=60), err) == (0, "")
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_ctrl_c_while_numpy_is_imported_is_no_bug_of_ours(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("""
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(9)
except KeyboardInterrupt:
    raise ImportError("as numpy's C code does it") from None
""")
    path = os.pathsep.join([str(tmp_path), str(Path(cli.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "refimpl", "train"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, b"")


@contextlib.contextmanager
def disk_with(count: int) -> Iterator[None]:
    """No file gets longer than so many bytes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_nothing_is_left(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with disk_with(4096):
        code = cli.main([*command, "--epochs", "1"])
    err = capsys.readouterr().err
    assert code == 2 and "cannot be written" in err and "too large" in err and len(err.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_full_disk_is_to_every_writer_of_tensors_what_it_is_to_other_files(tmp_path: Path) -> None:
    with (
        disk_with(4096),
        pytest.raises(LoracleError, match="x: cannot be written"),
        new_folder(tmp_path / "x") as folder,
    ):
        write_safetensors(folder / "tensors", {"x": np.zeros(4096)})
    assert not list(tmp_path.iterdir())
