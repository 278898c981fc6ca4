"""Sets of modules by what an adapter has there: a tile, a pattern or a buffer may end at the ranks of some of them."""

from collections.abc import Sequence

import numpy as np

from ...adapter import Adapter, lora_alpha_of
from ...config import Module
from .regions import Region

COST = 3.0  # bits of such a set
ABOVE = (4, 8, 16)  # ranks


def adapter_regions(adapters: Sequence[Adapter], modules: Sequence[Module]) -> list[Region]:
    """Return them over these modules, for a request of these adapters: where one of them is so, the set has a module.
    They have the same words for every request."""
    of_modules = [[_at(adapter, module) for adapter in adapters if module in adapter.lora] for module in modules]
    every = _at_rank(1, 1, False, False)
    return [
        Region(words, np.array([any(one[words] for one in of_module) for of_module in of_modules]), COST)
        for words in every
    ]


def _at(adapter: Adapter, module: Module) -> dict[str, bool]:
    config, r = adapter.config, len(adapter.lora[module].A)
    largest = max(len(lora.A) for lora in adapter.lora.values())
    return _at_rank(r, largest, r != config.r, lora_alpha_of(config, module) != config.lora_alpha)


def _at_rank(r: int, largest: int, has_own_rank: bool, has_own_alpha: bool) -> dict[str, bool]:
    return {
        "modules of even rank": r % 2 == 0,
        "modules of odd rank": r % 2 == 1,
        **{f"modules of a rank above {n}": r > n for n in ABOVE},
        **{f"modules of rank {n} or less": r <= n for n in ABOVE},
        "modules of a rank that is no multiple of 8": r % 8 != 0,
        "modules of its largest rank": r == largest,
        "modules of less than its largest rank": r < largest,
        "modules that rank_pattern names": has_own_rank,
        "modules that rank_pattern leaves alone": not has_own_rank,
        "modules that alpha_pattern names": has_own_alpha,
        "modules that alpha_pattern leaves alone": not has_own_alpha,
    }
