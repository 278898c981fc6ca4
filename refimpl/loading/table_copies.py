"""Copies of the base's own tables that PEFT saves beside a LoRA on them: whole layers by their look, and no change.

save_embedding_layers "auto", PEFT's default, saves embed_tokens and lm_head with every adapter that targets one of
them, for the case that the vocabulary has grown. Where it has not, the copy is the base's table, and the adapter adds
to the base like any other: it may be summed and weighted.
"""

from dataclasses import replace

import numpy as np

from ..adapter import Adapter
from ..arrays import Array, rounded, to_host, widen
from ..config import EMBED, LM_HEAD, module_name
from ..weights import Model
from .peft_config import is_saved

ROWS = 4096  # compared at a time; more takes memory and saves nothing


def without_copies(adapter: Adapter, model: Model) -> Adapter:
    """Return the adapter without the tables that are the base's own, in the type that the model holds them in.

    A table that modules_to_save names stays: it is a layer of the adapter's own, trained or not."""
    tables = [module for module in (EMBED, LM_HEAD) if module in adapter.replaced]
    copies = {
        module
        for module in tables
        if not is_saved(adapter.config, module_name(module))
        and is_same(adapter.replaced[module], model.linear(module).weight, model.dtype)
    }
    if not copies or copies != {*tables}:  # of tied tables one stands for both
        return adapter
    return replace(adapter, replaced={other: adapter.replaced[other] for other in adapter.replaced.keys() - copies})


def is_same(copy: Array, weight: Array, dtype: str) -> bool:
    """Whether the copy, rounded to the type, is the weight, number by number."""
    if copy.shape != weight.shape:
        return False
    wide = "float64" if dtype == "float64" else "float32"
    blocks = [slice(start, start + ROWS) for start in range(0, len(copy), ROWS)]
    return all(
        np.array_equal(rounded(widen(copy[rows], wide), dtype), widen(to_host(weight[rows]), wide)) for rows in blocks
    )
