"""Other adapters on the same base: what a mistake goes with in an adapter, it goes with in those as well.

A campaign has few adapters. That all with a wrong row have rsLoRA may be why they are wrong, and so may be that all of
them leave k_proj alone: of seven adapters many such facts are true of the same ones. So when a mistake was found that
is not made everywhere, the engine is asked about adapters of which nothing was known when it was found.
"""

from pathlib import Path

import numpy as np

from ...engines.interface import Capabilities
from ..cases.batches import draw_batch
from ..cases.case import Case
from ..cases.testbed import Testbed, save_adapters
from ..cases.variety import KINDS, random_adapters

BATCHES = 5  # larger: slower, and fewer conditions that fit by chance
SEED = 31  # of their numbers: any but those of a campaign


def other_testbed(testbed: Testbed, capabilities: Capabilities, work: Path) -> Testbed:
    """Return the same base with as many other adapters as there are kinds; their folders are written below `work`."""
    rng = np.random.default_rng([SEED, len(testbed.adapters)])
    adapters = random_adapters(testbed.model, rng, capabilities, KINDS, prefix="other")
    paths = save_adapters(adapters, work / "others", testbed.dtype, testbed.model.config)
    return Testbed.load(testbed.folder, testbed.model, paths)


def other_cases(testbed: Testbed, capabilities: Capabilities) -> list[Case]:
    """Return the batches that an engine is asked of them."""
    seeds = [np.random.default_rng([SEED, i, 1]) for i in range(BATCHES)]
    return [draw_batch(testbed, capabilities, rng, f"other adapters {i}") for i, rng in enumerate(seeds)]
