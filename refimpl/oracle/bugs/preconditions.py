"""Which mutants can show in which case, and which cases are looked at."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...config import EMBED, LM_HEAD
from ...engines.interface import Settings
from ..cases.case import Case
from ..cases.testbed import Testbed
from . import Mutant

HISTORY = ("sequence", "chunks", "scattered blocks", "sum", "weight")  # needs that sequences are drawn for


def is_applicable(mutant: Mutant, testbed: Testbed, case: Case, settings: Settings) -> bool:
    """Is there, in this kind of case, what the mutant needs? Nothing is computed for those that cannot show, nor in a
    sequence, which is long, for those that show in any batch."""
    if not case.stateless and mutant.needs not in HISTORY:
        return False
    adapters = testbed.adapters.values()
    has_latent_lora = any(name == "kv_b_proj" for adapter in adapters for _, name in adapter.lora)
    present = {
        "sequence": not case.stateless,
        "chunks": settings.chunk is not None,
        "kv_b_proj LoRA": has_latent_lora,
        "kv_b_proj LoRA in steps": has_latent_lora,
        "window": testbed.model.config.sliding_window is not None,
        "embed_tokens LoRA": any(EMBED in adapter.lora for adapter in adapters),
        "lm_head LoRA": any(LM_HEAD in adapter.lora for adapter in adapters),
        "tied embedding": testbed.model.config.tie_word_embeddings
        and any(EMBED in adapter.lora for adapter in adapters),
        "modules_to_save": any(adapter.replaced for adapter in adapters),
        "base biases": any(adapter.biases for adapter in adapters),
        "grown vocabulary": any(adapter.replaced for adapter in adapters),
        "lora_bias": any(adapter.config.lora_bias for adapter in adapters),
        "rslora": any(adapter.config.use_rslora for adapter in adapters),
        "rank_pattern": any(adapter.config.rank_pattern for adapter in adapters),
        "alpha_pattern": any(adapter.config.alpha_pattern for adapter in adapters),
        "sum": any(request.adapter_weights for run in case.runs for request in run.requests),
        "weight": any(request.adapter_weights for run in case.runs for request in run.requests),
    }
    return present.get(mutant.needs, True)


def spread(xs: Sequence[Any], n: int) -> list[Any]:
    """At most n of them, from all over."""
    return [xs[i] for i in np.unique(np.linspace(0, len(xs) - 1, min(n, len(xs))).astype(int))] if xs else []
