"""The type that an engine computes in: where nobody declared it, or where its base rows are noisier than that is."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from .case_order import batch
from .cases.testbed import Testbed
from .cases.testbed import settings as testbed_settings
from .diagnosis.workers import error_ratios
from .engine_driver import EngineDriver
from .noise import precision
from .noise.ensemble import Member
from .noise.verdict import Thresholds
from .reports.result import PlayedCase
from .verdicts import judge_all

INFERRED_FROM = 3  # batches from which --precision auto infers the type
CASES = 6  # cases in whose base rows the lower type is looked for; larger: slower


def inferred(driver: EngineDriver, testbed: Testbed, seed: int) -> Testbed:
    """Return the testbed in the type that the first batches speak for."""
    settings = testbed_settings(testbed)
    cases = [batch(testbed, driver.capabilities, seed, i) for i in range(INFERRED_FROM)]
    return testbed.in_dtype(precision.infer([(case, driver.exchanges(case, settings)) for case in cases], testbed))


@dataclass(frozen=True)
class LowerType:
    """What goes on from there."""

    thresholds: Thresholds
    members: tuple[Member, ...]  # the honest runs
    line: str  # which says what was found
    finding: precision.PrecisionFinding | None = None
    is_cause: bool = False  # of the failures: beside it nothing else would be found


def in_lower_type(
    driver: EngineDriver,
    testbed: Testbed,
    played: Sequence[PlayedCase],
    thresholds: Thresholds,
    workers: Executor,
    members: tuple[Member, ...],
) -> LowerType:
    """Name what is kept in a lower type, measure and judge all cases again with the noise that it makes.

    Where nothing explains the base rows, all is as it was. So it is with weights that were rounded when they were
    loaded, which are others than the file's, and with keys and values in a float8: beside noise of three bits little of
    an adapter would be seen. Those fail, and the line says why."""
    samples = [driver.sample(one.case, one.settings, members) for one in played[:CASES]]
    finding = precision.lower_precision(samples, testbed)
    if finding is None:
        times = float(np.exp(thresholds.base - thresholds.highest))
        line = f"base rows are {times:.3g} x as far off as {testbed.dtype} rounds, and "
        if dtype := precision.rounded_weights(samples, testbed):
            what = f"the base's weights rounded to {dtype} explain it"
        elif dtype := precision.float8_cache(samples, testbed):
            what = f"keys and values rounded to {dtype} explain it"
        else:
            what = "no lower type explains that"
        return LowerType(thresholds, members, line + what, is_cause=bool(dtype))
    members = precision.narrowed(members, finding)
    again = [
        workers.submit(error_ratios, one.case, driver.exchanges(one.case, one.settings), members) for one in played
    ]
    for one, future in zip(played, again, strict=True):
        one.ratios = future.result()
    return LowerType(judge_all(played), members, f"precision: {finding.what}, not {testbed.dtype}", finding)
