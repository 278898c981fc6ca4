"""A worker: an engine in a process of its own, with the python of another environment, at the end of a pipe.

A call goes over as a line of JSON; the reply comes back as a line of JSON and the bytes of an .npz (the far end is
workers/serve_pipe.py). A worker that dies, hangs or talks nonsense is an EngineError with its last lines of stderr.
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

LAST_LINES = 6  # of stderr, in an error: a traceback's end and what led to it
GRACE = 5.0  # seconds for a worker to end by itself before it is killed; a longer one delays every failure


class Refused(EngineError):
    """The worker is well, and reports that it cannot do what the call says."""


class Worker:
    """A running worker. One call at a time."""

    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start it. command: the python and the script; variables: the whole environment of the process."""
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
        self.replies: queue.Queue[_Reply] = queue.Queue()
        self.reader = threading.Thread(target=_read, args=(self.process.stdout, self.replies), daemon=True)
        self.reader.start()
        RUNNING.add(self)
        # Also when nobody closes it, and when Python ends.
        self._end = weakref.finalize(self, _end, self.process, self.reader, self.stderr)

    def call(self, call: str, timeout: float, /, **arguments: Any) -> tuple[Any, dict[str, Array]]:
        """Return what the worker's function of this name returns: something of JSON, and arrays by name.

        Refused if the function raised. EngineError, and the worker is ended, if no reply comes within `timeout`
        seconds, or none that can be understood."""
        if not self._end.alive:
            raise EngineError(f"{self.name}: its worker is not running")
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"call": call, "arguments": arguments}).encode() + b"\n")
            self.process.stdin.flush()
            reply = self.replies.get(timeout=timeout)
        except queue.Empty:
            raise self._failure(f"no answer to {call!r} within {timeout:g} s") from None
        except OSError:
            reply = _Reply(ended=True)
        except KeyboardInterrupt:  # its answer would come to the next call: it is of no more use
            _kill(self.process)
            raise
        if reply.ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            code = self.process.poll()
            end = f"died of signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
            raise self._failure(f"its worker {end} during {call!r}")
        if reply.garbage:
            raise self._failure(f"its worker answered {call!r} with {reply.garbage}")
        if reply.error:
            raise Refused(f"{self.name}: {reply.error}")
        return reply.result, reply.arrays

    def close(self) -> None:
        """End the process, and everything that it has started."""
        self._end()

    def last_lines(self) -> str:
        """Return the last lines of its stderr, in one line."""
        if self.stderr.closed:
            return ""
        end = self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, end - 4000))
        lines = self.stderr.read().decode(errors="replace").splitlines()
        return " | ".join([line.strip() for line in lines if line.strip()][-LAST_LINES:])

    def _failure(self, what: str) -> EngineError:
        """End the worker, and return the error that says why."""
        _kill(self.process)
        lines = self.last_lines()
        self.close()
        return EngineError(f"{self.name}: {what}" + (f"; it said last: {lines}" if lines else "; it said nothing"))


class _Reply:
    """What was read from the pipe: a result with arrays, an error, nonsense, or the pipe's end."""

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


def _read(pipe: IO[bytes], replies: "queue.Queue[_Reply]") -> None:
    """Read replies, in a thread of its own: a read from a pipe has no time limit."""
    with contextlib.suppress(ValueError, OSError):  # the pipe was closed meanwhile
        while line := pipe.readline():
            reply = _parsed(line, pipe)
            replies.put(reply)
            if reply.garbage:  # nothing that follows can be trusted
                return
    replies.put(_Reply(ended=True))


def _parsed(line: bytes, pipe: IO[bytes]) -> _Reply:
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


RUNNING: "weakref.WeakSet[Worker]" = weakref.WeakSet()


def kill_all() -> None:
    """End every worker of this process at once, where Python itself is not going to end in order."""
    for worker in list(RUNNING):
        _kill(worker.process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _end(process: "subprocess.Popen[bytes]", reader: threading.Thread, stderr: IO[bytes]) -> None:
    """Close the worker's stdin, at which it ends; kill one that does not; then close the other pipes."""
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
    """Return the file of a worker's script."""
    return Path(__file__).parent / "workers" / script
