"""The numbers of many cases at once: truth, honest runs and mutants in worker processes, while the engine goes on.

A worker has the stage. What crosses is small: a case and its answers go in, ratios and sums come out.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

from ...engines.interface import Settings
from ..cases.case import Case, Exchange
from ..cases.testbed import Testbed
from ..noise.ensemble import Member
from ..noise.measure import ErrorRatios, measure
from .projection import ProjectionTerm, Sample, projection_terms
from .search import find

_stage: Testbed | None = None  # of this process


class Here(Executor):
    """No other process: everything is done when it is asked for."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Run it; a Future that is done."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def pool(testbed: Testbed, jobs: int) -> Executor:
    """jobs processes, or this one."""
    if jobs <= 1:
        _adopt(testbed)
        return Here()
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _adopt, (testbed,))


def _adopt(testbed: Testbed) -> None:
    global _stage
    _stage = testbed


def ratios(case: Case, exchanges: Sequence[Exchange], members: Sequence[Member]) -> list[ErrorRatios]:
    """What a case is judged by."""
    assert _stage is not None
    return measure(case, exchanges, _stage, members)[0]


def sample(case: Case, exchanges: Sequence[Exchange], members: Sequence[Member], settings: Settings) -> Sample:
    """With the errors themselves."""
    assert _stage is not None
    return Sample(case, exchanges, measure(case, exchanges, _stage, members)[1], settings)


def along(
    case: Case, exchanges: Sequence[Exchange], members: Sequence[Member], settings: Settings, names: Sequence[str]
) -> dict[str, list[ProjectionTerm | None]]:
    """One case beside many mutants."""
    assert _stage is not None
    one = sample(case, exchanges, members, settings)
    return {name: projection_terms(find(name, _stage).make, one, _stage) for name in names}
