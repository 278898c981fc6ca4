"""Which mutants can show in which case, and which cases are looked at."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config import EMBED, LM_HEAD
from ..cases.testbed import Testbed
from ..diagnosis.projection import Sample
from . import Mutant

if TYPE_CHECKING:
    from ..campaign import Played

HISTORY = ("sequence", "chunks", "scattered blocks", "sum", "weight")  # needs that sequences are drawn for


def could_show(m: Mutant, testbed: Testbed, p: "Played | Sample") -> bool:
    """Is there, in this kind of case, what the mutant needs? Nothing is computed for those that cannot show, nor in a
    sequence, which is long, for those that show in any batch."""
    if not p.case.stateless and m.needs not in HISTORY:
        return False
    adapters = testbed.adapters.values()
    there = {
        "sequence": not p.case.stateless,
        "chunks": p.settings.chunk is not None,
        "window": testbed.model.config.sliding_window is not None,
        "embed_tokens LoRA": any(EMBED in a.lora for a in adapters),
        "lm_head LoRA": any(LM_HEAD in a.lora for a in adapters),
        "tied embedding": testbed.model.config.tie_word_embeddings and any(EMBED in a.lora for a in adapters),
        "modules_to_save": any(a.replaced for a in adapters),
        "base biases": any(a.biases for a in adapters),
        "grown vocabulary": any(a.replaced for a in adapters),
        "lora_bias": any(a.config.lora_bias for a in adapters),
        "rslora": any(a.config.use_rslora for a in adapters),
        "rank_pattern": any(a.config.rank_pattern for a in adapters),
        "alpha_pattern": any(a.config.alpha_pattern for a in adapters),
        "sum": any(ask.adapter_weights for run in p.case.runs for ask in run.asks),
        "weight": any(ask.adapter_weights for run in p.case.runs for ask in run.asks),
    }
    return there.get(m.needs, True)


def spread(xs: Sequence[Any], n: int) -> list[Any]:
    """At most n of them, from all over."""
    return [xs[i] for i in np.unique(np.linspace(0, len(xs) - 1, min(n, len(xs))).astype(int))] if xs else []
