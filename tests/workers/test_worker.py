"""The pipe to a worker: whatever is at its other end, there is an answer or one line that says what happened."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from refimpl.engines import worker as worker_module
from refimpl.engines.interface import EngineError
from refimpl.engines.worker import Refused, Worker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="engines in environments of their own need POSIX")

Run = Callable[[str], Worker]
ANSWER = 'print(\'{"result": 1, "bytes": 0}\', flush=True); '
PATIENCE = 300  # seconds for what happens at once on an idle machine: it never decides a test
READ = "import sys, os, time; sys.stdin.readline(); "


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is about to end is given the time to, so that its exit code is its own."""
    monkeypatch.setattr(worker_module, "GRACE", PATIENCE)


@pytest.fixture
def run() -> Iterator[Run]:
    """A worker whose script is this text."""
    running: list[Worker] = []

    def started(script: str) -> Worker:
        running.append(Worker("fake", [sys.executable, "-S", "-c", script], os.environ))
        return running[-1]

    yield started
    for worker in running:
        worker.close()


def test_a_call_goes_over_and_its_answer_comes_back(run: Run) -> None:
    echo = "print(json.dumps({'result': json.loads(line), 'bytes': 0}), flush=True)"
    worker = run(f"import sys, json\nfor line in sys.stdin: {echo}")
    for i in range(3):
        assert worker.call("f", PATIENCE, x=[i], call="g") == ({"call": "f", "arguments": {"x": [i], "call": "g"}}, {})


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (READ + "sys.exit('no such model')", r"ended with exit code 1 during 'f'; it said last: no such model"),
        (READ + "os.kill(os.getpid(), 11)", r"died of signal 11 during 'f'; it said nothing"),
        ("raise SystemExit(3)", r"ended with exit code 3 during 'f'"),
        (READ + "print('hello', flush=True); time.sleep(3600)", r"answered 'f' with what is no answer: b'hello\\n'"),
        (READ + "print('[]', flush=True)", r"what is no answer: b'\[\]\\n'"),
        (READ + "print('{\"bytes\": 0}', flush=True)", r"what is no answer"),
        (READ + 'print(\'{"result": 1, "bytes": -5}\', flush=True)', r"what is no answer"),
        (READ + 'print(\'{"result": 1, "bytes": 3}\\nabc\', flush=True)', r"3 bytes that are no .npz"),
        (READ + 'print(\'{"result": 1, "bytes": 9}\\nabc\', flush=True)', r"ended with exit code 0 during 'f'"),
    ],
)
def test_a_worker_that_dies_or_talks_nonsense_is_one_line_and_is_gone(run: Run, script: str, message: str) -> None:
    worker = run(script)
    with pytest.raises(EngineError, match=f"^fake: .*{message}") as raised:
        worker.call("f", PATIENCE)
    assert "\n" not in str(raised.value)
    assert worker.process.poll() is not None
    with pytest.raises(EngineError, match="fake: its worker is not running"):
        worker.call("f", PATIENCE)


def test_a_worker_that_hangs_is_ended_with_its_children(run: Run) -> None:
    children = "import subprocess; child = subprocess.Popen(['sleep', '3600']); "
    children += "print(child.pid, file=sys.stderr, flush=True); "
    worker = run(READ + children + ANSWER + READ + "time.sleep(3600)")
    worker.call("f", PATIENCE)
    child = int(worker.last_lines())
    with pytest.raises(EngineError, match=r"fake: no answer to 'g' within 0.2 s; it said last: \d+"):
        worker.call("g", 0.2)
    assert worker.process.poll() is not None
    deadline = time.monotonic() + PATIENCE
    while alive(child) and time.monotonic() < deadline:  # the child of a dead process is buried by another
        time.sleep(0.05)
    assert not alive(child)


def alive(process: int) -> bool:
    """Is it there, and no mere entry of one that has ended?"""
    try:
        state = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_refusal_leaves_the_worker_as_it_was(run: Run) -> None:
    worker = run(
        READ + 'print(\'{"error": "not that", "bytes": 0}\', flush=True); sys.stdin.readline(); ' + ANSWER + READ
    )
    with pytest.raises(Refused, match=r"^fake: not that$"):
        worker.call("f", PATIENCE)
    assert worker.call("g", PATIENCE) == (1, {})


def test_a_program_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^fake: .*nowhere cannot be started: No such file"):
        Worker("fake", [str(tmp_path / "nowhere")], os.environ)


def test_a_worker_that_nobody_closes_ends_when_it_is_forgotten(run: Run) -> None:
    worker = Worker("fake", [sys.executable, "-S", "-c", READ], os.environ)
    process = worker.process
    del worker
    assert process.wait(PATIENCE) == 0


def test_a_call_that_is_broken_off_ends_the_worker_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it answers later would be taken for the answer to the next call."""
    worker = run(READ + "time.sleep(3600)")

    def interrupted(timeout: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker.replies, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.call("f", PATIENCE)
    assert worker.process.poll() is not None


def test_all_workers_end_where_python_does_not_end_in_order(run: Run) -> None:
    workers = [run(READ + "time.sleep(3600)") for _ in range(2)]
    worker_module.kill_all()
    assert all(worker.process.poll() is not None for worker in workers)
