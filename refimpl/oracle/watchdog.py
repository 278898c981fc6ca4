"""Ends a check whose budget is spent, or that is told to stop, also while its engine does not answer.

    with Watchdog(budget, leave) as watch:
        with watch.asking("asked batch 3"):
            engine.run(...)  # may never return

A call into an engine is broken off by a signal, which Python turns into an exception of the main thread, as Ctrl-C is:
that ends whatever computes or waits in Python, sleeps, or reads from a pipe or a socket. Other calls no signal ends: C
code that goes on, an engine that catches every exception, and on Windows whatever waits. Then, GRACE seconds later,
`leave` is called in a thread of its own, which says what is known and ends the process.

Not setitimer: its one timer may be somebody else's (pytest-timeout). The signal is sent by the thread.
"""

import _thread
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .reports.result import Result

GRACE = 1.0  # seconds that a call may go on after the signal; longer: an engine that hangs is noticed later
STEP = 0.05  # seconds between two looks at whether it does
LONG = 3600.0  # seconds that the thread sleeps at most, before it looks at the clock again
MORE = 0.1  # of the budget, that numbers of ours may take beyond it: to break them off wastes what they explain
BUDGET, SIGNAL = "budget", "signal"  # what may stop a check


class BudgetEnded(KeyboardInterrupt):
    """The budget is spent. It is no Exception, so that an engine's own `except Exception` lets it through."""


class Watchdog:
    """Watches one check. Without seconds and without `leave` it does nothing."""

    def __init__(self, seconds: float | None = None, leave: Callable[["Watchdog"], None] | None = None) -> None:
        """seconds: the budget, from now on. leave: says what is known and ends the process; without it, a call that no
        signal ends is waited for."""
        self.seconds, self.leave = seconds, leave
        self.end = float("inf") if seconds is None else time.monotonic() + seconds  # by time.monotonic()
        self.stopped_by = ""  # BUDGET or SIGNAL, once one of them has come
        self.broken_off = ""  # "asked batch 3": what was waited for then; "" if it was not the engine
        self.result_by_now: Callable[[], Result | None] = lambda: None  # what the check would say if it ended now
        self._asking: dict[object, tuple[str, float]] = {}  # what is waited for, and since when
        self._over, self._leaving, self._stopped = threading.Event(), False, float("inf")
        self._lock = threading.Lock()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "Watchdog":
        if self.seconds is None and self.leave is None:
            return self
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._previous: Any = None
        ours, theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, args=(ours,), daemon=True)
        self._undo.callback(ours.close)
        self._undo.callback(self._thread.join)
        self._undo.callback(theirs.close)  # at which the thread ends
        if self._in_main_thread:  # no other may say what a signal does
            theirs.setblocking(False)
            before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
            self._undo.callback(signal.set_wakeup_fd, before)
            if hasattr(signal, "SIGALRM"):
                self._previous = signal.signal(signal.SIGALRM, self._break_off)
                self._undo.callback(signal.signal, signal.SIGALRM, self._previous or signal.SIG_DFL)
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with self._lock:  # no signal is sent from here on
            self._over.set()
        if self._leaving:
            self._wait_for_the_end()
        self._undo.close()

    @property
    def remaining(self) -> float:
        """Seconds of the budget; infinite without one."""
        return max(0.0, self.end - time.monotonic())

    @contextlib.contextmanager
    def asking(self, what: str, last: bool = False) -> Iterator[None]:
        """The engine is "asked batch 3", say, in the block; KeyboardInterrupt where that is broken off.

        last: the engine is closed, and the check is ending anyway."""
        key, began = object(), time.monotonic()
        self._asking[key] = (what, began)
        try:
            yield
            if self._stopped > began and self.stopped_by and not last:  # the engine has swallowed it
                raise BudgetEnded if self.stopped_by == BUDGET else KeyboardInterrupt
        except KeyboardInterrupt:
            self.stopped_by = self.stopped_by or SIGNAL
            self.broken_off = self.broken_off or what
            raise
        finally:
            if self._leaving:
                self._wait_for_the_end()
            del self._asking[key]

    def why(self) -> str:
        """Return why the check was stopped, in words."""
        at = f" while the engine was {self.broken_off}" if self.broken_off else ""
        if self.stopped_by != BUDGET:
            return f"stopped by a signal{at}"
        hint = ": it hangs, or --budget is too small" if at else ""
        return f"the budget of {self.seconds:g} s ended{at}{hint}"

    def _watch(self, signals: socket.socket) -> None:
        """The thread: wait for the end of the budget or a signal, then for the engine to let go."""
        if hasattr(signal, "pthread_sigmask"):  # so that the main thread alone hears them
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        by = self._wait(signals)
        with self._lock:
            if self._over.is_set():
                return
            self._stopped, self.stopped_by = time.monotonic(), by
            if by == BUDGET and self._in_main_thread:
                self._interrupt()
        while not self._over.wait(STEP):
            late = self._late(self._stopped)
            if late and self.leave is not None:
                self._leaving = True
                self.broken_off = self.broken_off or late[-1]
                self.leave(self)
                return

    def _interrupt(self) -> None:
        """Break off what the main thread does."""
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(_main(), signal.SIGALRM)
        else:
            _thread.interrupt_main()

    def _late(self, after: float = 0.0) -> list[str]:
        """What has been waited for longer than GRACE, counted from `after` at the earliest; the innermost last."""
        now = time.monotonic()
        return [what for what, since in self._asking.copy().values() if now - max(after, since) > GRACE]

    def _wait(self, signals: socket.socket) -> str:
        """Return what stops the check: a signal, or the end of the budget; "" if it is over."""
        stops = {int(signal.SIGINT), int(signal.SIGTERM)}
        while not self._over.is_set():
            rest = self.end - time.monotonic()
            if rest <= 0 and (self._late() or -rest > MORE * (self.seconds or 0.0)):
                return BUDGET
            signals.settimeout(min(rest, LONG) if rest > 0 else STEP)
            with contextlib.suppress(TimeoutError, OSError):
                if stops & set(signals.recv(64)):  # the numbers of those that Python heard
                    return SIGNAL
        return ""

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signal. One that is not ours is for whoever had it before."""
        if self.stopped_by == BUDGET and not self._over.is_set():
            raise BudgetEnded
        if callable(self._previous):
            self._previous(number, frame)

    def _wait_for_the_end(self) -> None:
        """Another thread says what is known and ends the process: this one has nothing more to say."""
        while True:
            time.sleep(60)


def _main() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident
