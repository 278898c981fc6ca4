"""Which mutants can show in which case, and which cases are looked at."""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ...config import EMBED, LM_HEAD, ModelConfig, Module
from ...engines.interface import Settings
from ..cases.case import Case, Load
from ..cases.testbed import Testbed
from . import IN_SEQUENCES, Mutant
from .experts import in_expert

HISTORY = (
    *IN_SEQUENCES,
    "aLoRA in sequence",
    "chunks",
    "scattered blocks",
    "sum",
    "weight",
)  # needs that sequences are drawn for


def is_applicable(mutant: Mutant, testbed: Testbed, case: Case, settings: Settings) -> bool:
    """Is there, in this kind of case, what the mutant needs? Nothing is computed for those that cannot show, nor in a
    sequence, which is long, for those that show in any batch."""
    if not case.stateless and mutant.needs not in HISTORY:
        return False
    present = {
        **of_testbed(testbed),
        "sequence": not case.stateless,
        "prefix cache": not case.stateless and settings.prefix_caching,
        "eviction": not case.stateless and sum(isinstance(step, Load) for step in case.steps) > settings.max_adapters,
        "chunks": settings.chunk is not None,
        "sum": any(request.adapter_weights for run in case.runs for request in run.requests),
        "weight": any(request.adapter_weights for run in case.runs for request in run.requests),
    }
    return present.get(mutant.needs, True)


@lru_cache(maxsize=4)
def of_testbed(testbed: Testbed) -> dict[str, bool]:
    """Return which needs the base and its adapters meet, as far as that is up to them."""
    config, adapters = testbed.model.config, testbed.adapters.values()
    modules = {module for adapter in adapters for module in adapter.lora}
    return of_base(config, modules) | {
        "window": config.sliding_window is not None,
        "embed_tokens LoRA": EMBED in modules,
        "lm_head LoRA": LM_HEAD in modules,
        "lm_head LoRA on a prompt": LM_HEAD in modules,
        "tied embedding": config.tie_word_embeddings and EMBED in modules,
        "modules_to_save": any(adapter.replaced for adapter in adapters),
        "base biases": any(adapter.biases for adapter in adapters),
        "grown vocabulary": any(adapter.replaced for adapter in adapters),
        "lora_bias": any(adapter.config.lora_bias for adapter in adapters),
        "rslora": any(adapter.config.use_rslora for adapter in adapters),
        "experts rsLoRA": any(
            adapter.config.use_rslora and any(in_expert(module, config) for module in adapter.lora)
            for adapter in adapters
        ),
        "rank_pattern": any(adapter.config.rank_pattern for adapter in adapters),
        "alpha_pattern": any(adapter.config.alpha_pattern for adapter in adapters),
        **_of_ranks([len(lora.A) for adapter in adapters for lora in adapter.lora.values()]),
        "DoRA": any(adapter.use_dora for adapter in adapters),
        "DoRA on a bias": any(
            lora.magnitude is not None and config.has_bias(module[1])
            for adapter in adapters
            for module, lora in adapter.lora.items()
        ),
        "aLoRA": any(adapter.config.alora_invocation_tokens for adapter in adapters),
        "aLoRA in sequence": any(adapter.config.alora_invocation_tokens for adapter in adapters),
    }


def _of_ranks(ranks: Collection[int]) -> dict[str, bool]:
    most = max(ranks, default=0)
    return {
        "rank 8": 8 in ranks,
        "rank over 8": most > 8,
        "rank over 16": most > 16,
        "odd rank": any(rank % 2 and rank > 1 for rank in ranks),
        "mixed ranks": len(set(ranks)) > 1,
    }


def of_base(config: ModelConfig, modules: Collection[Module]) -> dict[str, bool]:
    """Return which needs are met that no Llama meets. modules: those with LoRA of some adapter."""
    moe, names = config.moe, {name for _, name in modules}
    shared = bool(moe and moe.shared) and not names.isdisjoint(moe.shared.modules if moe and moe.shared else ())
    windows = {config.kind(i).window for i in range(config.num_hidden_layers)}
    return {
        "kv_b_proj LoRA": "kv_b_proj" in names,
        "kv_b_proj LoRA in steps": "kv_b_proj" in names,
        "experts": moe is not None,
        "experts LoRA": any(in_expert(module, config) for module in modules),
        "router LoRA": moe is not None and moe.router in names,
        "shared expert LoRA": shared,
        "gated shared expert LoRA": shared and moe is not None and moe.shared_gate is not None,
        "multiplied embedding LoRA": config.embedding_multiplier != 1 and EMBED in modules,
        "capped logits LoRA": config.logits_softcap is not None and LM_HEAD in modules,
        "norms of q and k": config.norms.q is not None and not names.isdisjoint(("q_proj", "k_proj")),
        "sinks": config.sinks,
        "sliding and full layers": len(windows) > 1,
        "longrope": any(rope.type == "longrope" for rope in config.ropes),
    }


def spread(xs: Sequence[Any], n: int) -> list[Any]:
    """At most n of them, from all over."""
    return [xs[i] for i in np.unique(np.linspace(0, len(xs) - 1, min(n, len(xs))).astype(int))] if xs else []
