"""Mutants that do the same on the cases at hand: which other case would tell them apart?"""

from collections.abc import Sequence

import numpy as np

from ...arrays import Array
from ...engines.ours import Ours
from ..bugs import Mutant
from ..cases.case import Case, play, prepare
from ..cases.testbed import Testbed
from ..cases.testbed import settings as testbed_settings


def separating_case(mutants: Sequence[Mutant], elsewhere: Sequence[tuple[Case, Testbed]]) -> str:
    """Return the first case on which not all of them do the same, in words; "" if there is none."""
    for case, testbed in elsewhere:
        first, *others = (_logits(mutant, case, testbed) for mutant in mutants)
        for mutant, other in zip(mutants[1:], others, strict=True):
            if any(
                before.shape != after.shape or not np.allclose(before, after)
                for before, after in zip(first, other, strict=True)
            ):
                names = sorted({request.adapter for request in case.runs[0].requests if request.adapter})
                shapes = ", ".join(_shape(testbed, name) for name in names)
                return f"{mutants[0].name} and {mutant.name} differ on {shapes}"
    return ""


def _logits(mutant: Mutant, case: Case, testbed: Testbed) -> list[Array]:
    """Return what the mutant answers to a case in float64, with tokens of its own."""
    adapters = {testbed.paths[key]: adapter for key, adapter in testbed.adapters.items()}
    engine = Ours(mutant.make, None, testbed.exact, adapters)
    engine.start(testbed_settings(testbed))
    prepare(engine, testbed)
    exchanges = play(engine, case, testbed)
    return [exchange.response.logits for exchange in exchanges if exchange.response.logits is not None]


def _shape(testbed: Testbed, name: str) -> str:
    config = testbed.adapters[name].config
    return f"{name} (r={config.r}, alpha={config.lora_alpha:g}{', rsLoRA' if config.use_rslora else ''})"
