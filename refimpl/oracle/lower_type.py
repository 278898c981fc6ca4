"""The type that an engine computes in: where nobody declared it, or where its base rows are noisier than that is."""

from collections.abc import Sequence
from concurrent.futures import Executor

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


def in_lower_type(
    driver: EngineDriver,
    testbed: Testbed,
    played: Sequence[PlayedCase],
    thresholds: Thresholds,
    workers: Executor,
    members: tuple[Member, ...],
) -> tuple[Thresholds, precision.PrecisionFinding | None, tuple[Member, ...], str]:
    """Name what is kept in a lower type, measure and judge all cases again with the noise that it makes.

    Return the thresholds and the honest runs from then on, what was found, and a line that says it. Where nothing
    explains the base rows, or weights that were rounded when they were loaded, that is the line, and the rest is as it
    was: those are other weights than the file's, and no rounding of a step."""
    samples = [driver.sample(one.case, one.settings, members) for one in played[:CASES]]
    finding = precision.lower_precision(samples, testbed)
    if finding is None:
        times = float(np.exp(thresholds.base - thresholds.highest))
        line = f"base rows are {times:.3g} x as far off as {testbed.dtype} rounds, and "
        dtype = precision.rounded_weights(samples, testbed)
        line += f"the base's weights rounded to {dtype} explain it" if dtype else "no lower type explains that"
        return thresholds, None, members, line
    members = precision.narrowed(members, finding)
    again = [
        workers.submit(error_ratios, one.case, driver.exchanges(one.case, one.settings), members) for one in played
    ]
    for one, future in zip(played, again, strict=True):
        one.ratios = future.result()
    return judge_all(played), finding, members, f"precision: {finding.what}, not {testbed.dtype}"
