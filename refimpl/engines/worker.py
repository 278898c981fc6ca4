"""A worker: an engine in a process of its own, with the python of another environment, at the end of a pipe.

A call goes over as a line of JSON; the answer comes back as a line of JSON and the bytes of an .npz (the far end is
workers/serve_pipe.py). What dies, hangs or talks nonsense is an EngineError that ends with the worker's own last words.
"""

import contextlib
import io
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..arrays import Array
from .interface import EngineError

LAST_LINES = 6  # of stderr, in an error
GRACE = 5.0  # seconds for a worker to end by itself


class Refused(EngineError):
    """The worker is well, and says that it cannot do what was asked."""


class Worker:
    """A running worker. One call at a time."""

    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """command: the python and the script; variables: the whole environment of the process."""
        self.name = name
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.stderr,
                env=dict(variables),
                start_new_session=True,  # so that its children end with it
            )
        except OSError as error:
            self.stderr.close()
            raise EngineError(f"{name}: {command[0]} cannot be started: {error.strerror}") from None
        self.answers: queue.Queue[_Reply] = queue.Queue()
        self.reader = threading.Thread(target=_read, args=(self.process.stdout, self.answers), daemon=True)
        self.reader.start()
        # Also when nobody closes it, and when Python ends.
        self._end = weakref.finalize(self, _end, self.process, self.reader, self.stderr)

    def call(self, call: str, timeout: float, /, **arguments: Any) -> tuple[Any, dict[str, Array]]:
        """What the worker's function of this name returns: something of JSON, and arrays.

        Refused if the function raised. EngineError, and the worker is ended, if no answer comes within `timeout`
        seconds, or none that can be understood."""
        if not self._end.alive:
            raise EngineError(f"{self.name}: its worker is not running")
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"call": call, "arguments": arguments}).encode() + b"\n")
            self.process.stdin.flush()
            reply = self.answers.get(timeout=timeout)
        except queue.Empty:
            raise self._failure(f"no answer to {call!r} within {timeout:g} s") from None
        except OSError:
            reply = _Reply(ended=True)
        if reply.ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            code = self.process.poll()
            how = f"died of signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
            raise self._failure(f"its worker {how} during {call!r}")
        if reply.garbage:
            raise self._failure(f"its worker answered {call!r} with {reply.garbage}")
        if reply.error:
            raise Refused(f"{self.name}: {reply.error}")
        return reply.result, reply.arrays

    def close(self) -> None:
        """End it, and everything that it has started."""
        self._end()

    def last_words(self) -> str:
        """The last lines of its stderr, in one line."""
        if self.stderr.closed:
            return ""
        end = self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, end - 4000))
        lines = self.stderr.read().decode(errors="replace").splitlines()
        return " | ".join([line.strip() for line in lines if line.strip()][-LAST_LINES:])

    def _failure(self, what: str) -> EngineError:
        """Ends the worker."""
        _kill(self.process)
        said = self.last_words()
        self.close()
        return EngineError(f"{self.name}: {what}" + (f"; it said last: {said}" if said else "; it said nothing"))


class _Reply:
    """What was read from the pipe: one of these."""

    def __init__(
        self,
        result: Any = None,
        arrays: Mapping[str, Array] | None = None,
        error: str = "",
        garbage: str = "",
        ended: bool = False,
    ) -> None:
        self.result, self.arrays, self.error = result, dict(arrays or {}), error
        self.garbage, self.ended = garbage, ended


def _read(pipe: IO[bytes], answers: "queue.Queue[_Reply]") -> None:
    """In a thread of its own, because a read from a pipe cannot be told to give up."""
    with contextlib.suppress(ValueError, OSError):  # the pipe was closed under us
        while line := pipe.readline():
            reply = _understood(line, pipe)
            answers.put(reply)
            if reply.garbage:  # nothing that follows can be trusted
                return
    answers.put(_Reply(ended=True))


def _understood(line: bytes, pipe: IO[bytes]) -> _Reply:
    import numpy as np

    try:
        head = json.loads(line)
        size = head["bytes"]
        if type(size) is not int or size < 0 or not ("result" in head or "error" in head):
            raise KeyError
    except (ValueError, KeyError, TypeError):
        return _Reply(garbage=f"what is no answer: {line[:80]!r}")
    body = pipe.read(size)
    if len(body) < size:
        return _Reply(ended=True)
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) if body else contextlib.nullcontext({}) as file:
            arrays = {name: file[name] for name in file}
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile):
        return _Reply(garbage=f"{size} bytes that are no .npz")
    return _Reply(head.get("result"), arrays, str(head.get("error") or ""))


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _end(process: "subprocess.Popen[bytes]", reader: threading.Thread, stderr: IO[bytes]) -> None:
    """A worker ends when its stdin does; one that does not is killed. Then its pipes are closed."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    _kill(process)
    reader.join(GRACE)
    if not reader.is_alive():
        process.stdout.close()
    stderr.close()


def worker_path(script: str) -> Path:
    """The file of a worker's script."""
    return Path(__file__).parent / "workers" / script
