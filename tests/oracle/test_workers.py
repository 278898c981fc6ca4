"""The numbers of a campaign are those of one process, to the bit, wherever they are made."""

import pickle
from pathlib import Path

import numpy as np

from refimpl.engines.ours import Ours
from refimpl.oracle.case_order import cases_of
from refimpl.oracle.cases.testbed import Testbed, build
from refimpl.oracle.diagnosis import workers
from refimpl.oracle.engine_driver import EngineDriver, ask_all
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.reports.result import CampaignSettings
from refimpl.oracle.watchdog import Watchdog


def writeable_arrays(testbed: Testbed) -> list[str]:
    """The names of what has arrays that could be written to."""
    wide = {f"{key} in float64": adapter for key, adapter in testbed.wide.items()}
    owners = {"model": testbed.model, "exact": testbed.exact, **testbed.adapters, **wide}
    return [name for name, owner in owners.items() if any(array.flags.writeable for array in owner.arrays())]


def test_a_testbed_in_another_process_measures_the_same_bits(tmp_path: Path) -> None:
    """pickle forgets that an array is read-only, and what is not is multiplied in another form (matmul.py)."""
    testbed = build("random", "float32", 0, tmp_path, Ours().capabilities)
    there = pickle.loads(pickle.dumps(testbed))
    assert writeable_arrays(testbed) == writeable_arrays(there) == []

    driver = EngineDriver(Ours, testbed, tmp_path, Watchdog())
    plan = CampaignSettings(cases=1, sequences=1, below=False)
    asked = list(ask_all([driver], cases_of(testbed, driver.capabilities, plan, lambda: False, [])))
    driver.close()
    assert len(asked) == 2
    for case, _, exchanges in asked:
        ratios = []
        for one in (testbed, there):
            workers.adopt(one)
            ratios.append([x.ratio for x in workers.error_ratios(case, exchanges, ensemble("float32"))])
        assert ratios[0] and all(map(np.array_equal, *ratios))
