"""The learner's function under observation: what it prints, returns and raises, and whether it ends."""

import contextlib
import ctypes
import functools
import hashlib
import inspect
import io
import math
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from .exercise import Attempt

AGAIN = 0.05  # seconds between two interrupts: fewer are lost for longer, more hinder what cleans up
ONE_CALL = 10.0  # seconds: a call takes milliseconds; larger is more patience with a busy machine, and with a loop
PRINTED = 200  # characters that are kept of what it prints


class NotAttempted(BaseException):
    """The stub raises NotImplementedError. Not an Exception, so that neither a grader nor Hypothesis keeps it."""


class TooSlow(BaseException):
    """The time is up."""


class WatchedAttempt:
    """Calls a function; keeps the beginning of what it printed, and sees if it returned what it should have changed, or
    changed what is not its own."""

    def __init__(self, function: Attempt, in_place: bool = False, seconds: float = math.inf) -> None:
        self.function, self.in_place = function, in_place
        self.deadline = time.perf_counter() + seconds
        self.patience = min(seconds, ONE_CALL)  # with one call
        self.called = math.inf  # when the call that is running began
        self.printed = ""
        self.returned_instead = False
        self.changed = ""  # the last argument that it changed and should have left

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if time.perf_counter() > self.deadline:
            raise TooSlow
        before = np.array(args[0]) if self.in_place else None
        arguments = args[self.in_place :]
        fingerprints = [fingerprint(argument) for argument in arguments]
        output = FirstCharacters(PRINTED)
        self.called = time.perf_counter()
        try:
            with contextlib.redirect_stdout(output):
                result = self.function(*args, **kwargs)
        except NotImplementedError:
            raise NotAttempted from None
        finally:
            self.called = math.inf
            self.printed = self.printed or output.getvalue()
        if before is not None and result is not None:
            self.returned_instead = np.array_equal(before, args[0])
        for i, (argument, earlier) in enumerate(zip(arguments, fingerprints, strict=True), int(self.in_place)):
            if fingerprint(argument) != earlier:
                self.changed = self.name_of(i)
        return result

    def is_over(self) -> bool:
        """Whether it is running, and either its call or the grading has taken too long. No call begins after that."""
        now = time.perf_counter()
        over = now - self.called > self.patience or (self.called <= now and now > self.deadline)
        if over:
            self.deadline = min(self.deadline, now)
        return over

    def name_of(self, position: int) -> str:
        """The name that the function gives to one of its arguments."""
        with contextlib.suppress(ValueError, TypeError):  # a function in C has no signature that could be seen
            names = list(inspect.signature(self.function).parameters)
            if position < len(names):
                return names[position]
        return f"argument {position + 1}"


def fingerprint(value: Any) -> Hashable:
    """What is equal as long as arrays, lists and dicts hold the same; of an array no copy is made."""
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        return value.shape, value.dtype.str, hashlib.sha256(content).digest()
    if isinstance(value, list | tuple):
        return tuple(fingerprint(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, fingerprint(item)) for key, item in value.items())
    return repr(value) if isinstance(value, int | float | str | bytes) else None


class FirstCharacters(io.StringIO):
    """A stream that keeps its first characters and forgets the rest."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def write(self, text: str) -> int:
        super().write(text[: max(0, self.size - self.tell())])
        return len(text)


def line_of(error: Exception, attempt: Attempt) -> str:
    """Say which line of the learner's file was being executed."""
    function = attempt.function if isinstance(attempt, WatchedAttempt) else attempt
    file = file_of(function)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"line {lines[-1]} of your file" if lines else "outside of your file"


def file_of(function: Attempt) -> str | None:
    """The file of a function, a method, a partial or an object that can be called; None for what is in C."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = function.func
    for source in (function, type(function)):
        with contextlib.suppress(TypeError):
            return inspect.getsourcefile(source)
    return None


@contextlib.contextmanager
def time_limit(seconds: float, interruptible: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Raise TooSlow in this thread when the time is up, as often as it takes, while `interruptible()`: elsewhere, in
    the middle of Hypothesis say, it might be lost or do harm.

    Works wherever Python code runs, in a notebook and on Windows, too; a call that stays in C, or code that catches
    everything, is ended by the process that graded it instead."""
    thread = ctypes.c_ulong(threading.get_ident())
    lock, over = threading.Lock(), threading.Event()

    def interrupt() -> None:
        wait = seconds
        while not over.wait(wait):
            wait = AGAIN
            with lock:
                if not over.is_set() and interruptible():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TooSlow))

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        yield
    finally:
        with lock:
            over.set()
