"""A short campaign on the small testbed."""

from collections.abc import Callable
from pathlib import Path

from refimpl import NUMPY, Ops, Precision
from refimpl.engines.ours import Ours
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.reports.result import CampaignSettings, Result

from .testbed import small_testbed


def campaign(
    tmp_path: Path,
    make: Callable[[], Ops] = lambda: NUMPY,
    dtype: str = "float32",
    precision: Precision | None = None,
    **changes,
) -> Result:
    """Return what comes of five batches, without a look below the noise; `changes` are of CampaignSettings."""
    options = {"cases": 5, "sequences": 0, "below": False} | changes
    return Campaign(lambda: Ours(make, precision), small_testbed(dtype), CampaignSettings(**options), tmp_path).run()


def named(result: Result) -> list[str]:
    """Return the names of the mutants that explain it."""
    return [finding.name for finding in result.explanation.findings if finding.explains]
