"""A case, asked of an engine that was started anew: what was asked before, and is kept somewhere, has no part in it.

A shrinker asks the same prompts again and again. An engine that keeps keys and values finds those of earlier tries,
wrong ones among them, and fails at cases that are right as soon as somebody else asks them. So what is shown as the
smallest failure has to fail in a new process. Where it does not, the last larger case that does takes its place, and is
made smaller once more, a new process for each try.
"""

import contextlib
import multiprocessing
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from ..engines.interface import Engine, EngineError, Settings
from .cases import archive
from .cases.case import Case, Exchange, play, prepare
from .cases.shrink import Budget, shrink
from .context import Context
from .engine_driver import EngineDriver

LONGEST = 300.0  # seconds that a process may take to import its engine and answer one case
CONFIRMING = 60.0  # seconds in which a larger case is looked for; then it is the one that was asked first
SHRINKING_ANEW = Budget(calls=40, seconds=30.0)


class NotAnew(EngineError):
    """The engine cannot be started anew from here, and why."""


@dataclass(frozen=True)
class Folders:
    """What there is to load: all of a testbed that an engine gets to see."""

    paths: Mapping[str, Path]


@dataclass(frozen=True)
class Confirmed:
    """A failure that is shown, what there is to say of it, and whether it takes what was asked before to fail."""

    case: Case
    lines: list[str]
    only_after: bool = False  # it is right in a new process


def confirmed(context: Context, cases: Sequence[Case], settings: Settings) -> Confirmed:
    """Return the smallest of these failures that fails in a new process as well; the first of them if none does.

    cases: from the one that was asked first to the smallest, each of which failed in the running engine."""
    first = cases[0]
    try:
        if fails_anew(context, cases[-1], settings):
            return Confirmed(cases[-1], [])
        if len(cases) == 1 or not fails_anew(context, first, settings):
            if not context.failures(first, settings, lambda: context.driver.exchanges(first, settings)):
                return Confirmed(first, [f"{first.name}: so narrow that it fails only beside more honest runs"])
            line = (
                f"{first.name}: it fails only after what was asked before, and is right in a new process: "
                "something is kept that should not be"
            )
            return Confirmed(first, [line], only_after=True)
        larger = _last_that_fails(context, cases, settings)
        line = (
            f"{first.name}: made smaller than what is shown, it fails only in a process that was asked other things "
            "before. Debug what is shown, which fails in a new process; this alone is no sign of a second bug"
        )
        return Confirmed(shrunk_anew(context, larger, settings), [line])
    except NotAnew as error:
        return Confirmed(cases[-1], [f"the smallest failure was not repeated in a new process: {error}"])


def shrunk_anew(context: Context, case: Case, settings: Settings) -> Case:
    """Return a case that fails in a new process, made smaller; a new process for each try."""
    return shrink(case, lambda smaller: fails_anew(context, smaller, settings), SHRINKING_ANEW)


def _last_that_fails(context: Context, cases: Sequence[Case], settings: Settings) -> Case:
    """The first case fails anew, the last one does not: halve what lies between."""
    fails, right, end = 0, len(cases) - 1, time.monotonic() + CONFIRMING
    while right - fails > 1 and time.monotonic() < end:
        middle = (fails + right) // 2
        if fails_anew(context, cases[middle], settings):
            fails = middle
        else:
            right = middle
    return cases[fails]


def fails_anew(context: Context, case: Case, settings: Settings) -> bool:
    """Does a request of the case fail where nothing was asked before? NotAnew where nobody can know."""
    return bool(context.failures(case, settings, lambda: exchanges_anew(context.driver, case, settings)))


def exchanges_anew(driver: EngineDriver, case: Case, settings: Settings) -> list[Exchange]:
    """Run the case on an engine that has done nothing else. NotAnew where that cannot be had.

    A process of its own is started for an engine that is a function of this one (`lives_here`); others start one, or
    hold all that they keep in themselves."""
    engine = driver.make()
    if getattr(engine, "runs_on", False):
        raise NotAnew("the server runs on, with all that it keeps")
    if not getattr(engine, "lives_here", False):
        return driver.run_anew(case, settings)
    exchanges = archive.saved(driver.work / "answers of new processes", case)
    if exchanges is None:
        exchanges = _in_a_process(engine, driver.testbed.paths, case, settings)
        archive.save(driver.work / "answers of new processes", case, exchanges)
    return exchanges


def _in_a_process(engine: Engine, paths: Mapping[str, Path], case: Case, settings: Settings) -> list[Exchange]:
    try:
        work = pickle.dumps((engine, Folders(dict(paths)), case, settings))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NotAnew(f"it cannot be handed over to one ({error})") from None
    spawned = multiprocessing.get_context("spawn")
    ours, theirs = spawned.Pipe()
    process = spawned.Process(target=_answer, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(LONGEST):
            raise NotAnew(f"no answer within {LONGEST:g} s")
        exchanges, problem = ours.recv()
    except EOFError:
        raise NotAnew("it ended without an answer") from None
    finally:
        ours.close()
        process.terminate()
        process.join()
    if problem:
        raise NotAnew(problem)
    return exchanges


def _answer(work: bytes, pipe: Connection) -> None:
    """The process: import the engine, play the case, send what came of it, or why nothing did."""
    exchanges: list[Exchange] = []
    error = ""
    try:
        engine, folders, case, settings = pickle.loads(work)
        engine.start(settings)
        if case.stateless:
            prepare(engine, folders)
        exchanges = play(engine, case, folders)
    except Exception as failure:  # the user's module may raise anything
        error = f"{type(failure).__name__}: {failure}".splitlines()[0]
    with contextlib.suppress(BrokenPipeError):
        pipe.send((exchanges, error))
