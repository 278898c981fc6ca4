"""The cause of an engine's failures, without the rest of a campaign."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from refimpl import Ops, Precision
from refimpl.engines.interface import Engine
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.oracle.cases.batches import draw_batch
from refimpl.oracle.cases.case import Case, Exchange
from refimpl.oracle.cases.testbed import settings
from refimpl.oracle.cause import cause_of
from refimpl.oracle.causes.statement import CauseReport
from refimpl.oracle.engine_driver import EngineDriver
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import measure
from refimpl.oracle.reports.result import PlayedCase
from refimpl.oracle.verdicts import judge_all

from .testbed import small_testbed


def cause_of_bug(make: Callable[[], Ops], work: Path, cases: int = 4, dtype: str = "float32") -> CauseReport | None:
    """Return what a fit says of an engine with this backend. AssertionError if nothing fails."""
    return cause_of_engine(lambda: Ours(make, Precision("model", dtype)), work, cases, dtype)


def cause_of_engine(
    make: Callable[[], Engine], work: Path, cases: int = 4, dtype: str = "float32"
) -> CauseReport | None:
    """Return the same of any engine."""
    testbed, members = small_testbed(dtype), ensemble(dtype)
    driver = EngineDriver(make, testbed, work)
    played = []
    for case, exchanges in asked(driver, cases):
        ratios, _ = measure(case, exchanges, testbed, members)
        played.append(PlayedCase(case, settings(testbed), ratios))
    thresholds = judge_all(played)
    assert any(one.verdict == "fail" for one in played)
    return cause_of(driver, testbed, members, thresholds, played)


def asked(driver: EngineDriver, cases: int = 4) -> Iterator[tuple[Case, list[Exchange]]]:
    """Yield the batches of these causes, and what comes back."""
    for i in range(cases):
        case = draw_batch(driver.testbed, CAPABILITIES, np.random.default_rng([5, i]), f"batch {i}")
        yield case, driver.exchanges(case, settings(driver.testbed))
