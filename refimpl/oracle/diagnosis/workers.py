"""The numbers of many cases at once: truth, honest runs and mutants in worker processes, while the engine goes on.

A worker has the testbed. A case and its responses go in, or a sample that is measured already; ratios and sums come
out.
"""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from ...engines.interface import Settings
from ..bugs.registry import find_bug
from ..cases.case import Case, Exchange
from ..cases.testbed import Testbed
from ..noise.ensemble import Member
from ..noise.measure import ErrorRatios, Sample, measure
from .projection import ProjectionTerm, projection_terms

_testbed: Testbed | None = None  # of this process


class InProcess(Executor):
    """No other process: everything is done when it is submitted."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Run it; return a Future that is done."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def pool(testbed: Testbed, jobs: int) -> Iterator[Executor]:
    """Give as many processes, or this one. An exception in the block (Ctrl-C is one) ends them at once: nobody waits
    for what is queued."""
    if jobs <= 1:
        adopt(testbed)
        yield InProcess()
        return
    others = set(multiprocessing.active_children())
    workers = _Pool(jobs, multiprocessing.get_context("spawn"), adopt, (testbed,))
    try:
        for _ in range(jobs):  # while the engine is started, the processes are
            workers.submit(int)
        yield workers
    except BaseException:
        workers.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    workers.shutdown()


class _Pool(ProcessPoolExecutor):
    """Whose processes do not hear Ctrl-C."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Run it in a process, which may be started for it."""
        with _deaf_to_ctrl_c():
            return super().submit(fn, *args, **kwargs)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Let the processes that start in the block not hear Ctrl-C from their first moment on, as they inherit that.

    A terminal sends it to all processes of a command; what it means is the first one's to say, which hears it when the
    block ends. So it is with the alarm at the end of a budget (watchdog.py): a process that was half started would say
    that what it was sent is truncated."""
    if hasattr(signal, "pthread_sigmask"):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGALRM})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return
    if threading.current_thread() is not threading.main_thread():  # only that one may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def adopt(testbed: Testbed) -> None:
    """Let the functions below work on this testbed, in this process."""
    global _testbed
    _testbed = testbed


def error_ratios(case: Case, exchanges: Sequence[Exchange], members: Sequence[Member]) -> list[ErrorRatios]:
    """Return the case's error ratios, from which its verdict comes."""
    assert _testbed is not None
    return measure(case, exchanges, _testbed, members)[0]


def measure_and_project(
    case: Case, exchanges: Sequence[Exchange], members: Sequence[Member], settings: Settings, names: Sequence[str]
) -> dict[str, list[ProjectionTerm | None]]:
    """Return, by name, the terms of each bug beside the case's errors."""
    assert _testbed is not None
    return project_bugs(Sample(case, exchanges, measure(case, exchanges, _testbed, members)[1], settings), names)


def project_bugs(sample: Sample, names: Sequence[str]) -> dict[str, list[ProjectionTerm | None]]:
    """Return, by name, the terms of each bug beside the sample's errors."""
    assert _testbed is not None
    return {name: projection_terms(find_bug(name, _testbed).make, sample, _testbed) for name in names}
