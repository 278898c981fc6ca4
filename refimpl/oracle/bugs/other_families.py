"""A, E, F, H in what other families have besides a Llama: factors, caps, norms of q and k, sinks, layers that slide,
and rotations that depend on how long a request is.
"""

import dataclasses
from typing import Any

import numpy as np

from ...adapter_slots import AdapterSlots, LoraWeights
from ...arrays import Array, Precision
from ...attention import attention, score_scale
from ...config import EMBED, LM_HEAD, ModelConfig, Module, Rope, View
from ...ops import NUMPY, Ops
from ...plans import AttentionMetadata, LoraMapping
from ...rope import rope_table
from .a_scale import scale
from .e_layout import layout
from .f_not_applied import not_applied
from .h_cache import cache
from .steps import Plan, add, but, loading, only, remapped

LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/pull/24875"


@scale.bug(
    "the embedding is multiplied, and its delta is not: it is added after the factor (sqrt(hidden_size) in Gemma)",
    "https://github.com/huggingface/peft/pull/2825",
    "https://github.com/huggingface/peft/pull/2839",
    "https://github.com/Lightning-AI/litgpt/issues/1193",
    needs="multiplied embedding LoRA",
)
def embedding_delta_not_multiplied() -> Ops:
    def change(module: Module, lora: LoraWeights, config: ModelConfig) -> LoraWeights:
        by = config.embedding_multiplier if module == EMBED else 1.0
        return dataclasses.replace(lora, scale=lora.scale / by)

    return loading(change)


# The delta in the wrong place.


@layout.bug("the delta of the lm_head is added after the cap of the logits, not before it", needs="capped logits LoRA")
def lm_head_delta_after_the_cap() -> Ops:
    late: list[Array] = []

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        if module != LM_HEAD:
            add(y, x, adapters.at(module), mapping, p)
            return
        late[:] = [np.zeros_like(y)]
        add(late[0], x, adapters.at(module), mapping, p)

    def softcap(x: Array, cap: float | None, dtype: str) -> Array:
        return NUMPY.softcap(x, cap, dtype) + (late.pop() if late else 0)

    return but(lora_delta=delta, softcap=softcap)


@layout.bug("q and k are normalised before their deltas are added, not after", needs="norms of q and k")
def qk_normalised_before_the_delta() -> Ops:
    late: list[Array] = []  # of q, then of k

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        if module[1] not in ("q_proj", "k_proj") or not has_qk_norms(adapters.model.config):
            add(y, x, adapters.at(module), mapping, p)
            return
        late.append(np.zeros_like(y))
        add(late[-1], x, adapters.at(module), mapping, p)

    def norm(x: Array, weight: Array, eps: float, p: Precision) -> Array:
        y = NUMPY.rms_norm(x, weight, eps, p)
        return y + late.pop(0).reshape(y.shape) if late else y

    return but(lora_delta=delta, rms_norm=norm)


def has_qk_norms(config: ModelConfig) -> bool:
    """Whether q and k are normalised before they are turned."""
    return config.norms.q is not None and not config.norms.centred


# Rows.


@not_applied.bug(
    "the delta of the lm_head is left out of a prompt's logits: only the row that is sampled from has it",
    "https://github.com/vllm-project/vllm/issues/51594",
    needs="lm_head LoRA on a prompt",
)
def lm_head_delta_not_on_prompts() -> Ops:
    last: list[Array] = []  # which of the rows that get logits are the last of their request

    def logits_indices(query_start_loc: Array, every: bool) -> Array:
        rows = NUMPY.logits_indices(query_start_loc, every)
        last[:] = [np.isin(rows, query_start_loc[1:] - 1)[:, None]]
        return rows

    def keep(ids: Array, weights: Array) -> Plan:
        return (only(last[0], ids) if last and len(last[0]) == len(ids) else ids), weights

    changed = remapped(keep)

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        add(y, x, adapters.at(module), changed(mapping) if module == LM_HEAD else mapping, p)

    return but(logits_indices=logits_indices, lora_delta=delta)


# Attention.


@cache.bug("the sinks are multiplied by the factor of the scores, as if they were products of q and k", needs="sinks")
def sinks_scaled() -> Ops:
    def mixed(q: Array, k: Array, v: Array, metadata: AttentionMetadata, view: View, p: Precision) -> Array:
        if view.sinks is not None:
            view = dataclasses.replace(view, sinks=view.sinks * score_scale(q, view))
        return attention(q, k, v, metadata, view, p)

    return but(attention=mixed)


@cache.bug(
    "each layer has the next one's window: those slide that should see everything", needs="sliding and full layers"
)
def windows_one_layer_off() -> Ops:
    now: list[int | None] = []  # the window that the layer which is computed now has by mistake

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        config: Any = adapters.model.config
        if isinstance(config, ModelConfig) and module[1] in config.qkv:
            now[:] = [config.kind((module[0] + 1) % config.num_hidden_layers).window]
        add(y, x, adapters.at(module), mapping, p)

    def mixed(q: Array, k: Array, v: Array, metadata: AttentionMetadata, view: View, p: Precision) -> Array:
        return attention(q, k, v, metadata, dataclasses.replace(view, window=now[0]) if now else view, p)

    return but(lora_delta=delta, attention=mixed)


# Rotations of which a long request has others than a short one (Rope.is_long).


@cache.bug(
    "every request turns by the long factors, because the engine has room for long ones",
    "https://github.com/ggml-org/llama.cpp/issues/24823",
    needs="longrope",
)
def longrope_by_capacity() -> Ops:
    def table(rope: Rope, head_dim: int, positions: Array, lengths: Array, p: Precision) -> Plan:
        return rope_table(rope, head_dim, positions, np.full_like(lengths, np.iinfo(lengths.dtype).max), p)

    return but(rope_table=table)


@cache.bug("every request of a batch turns by the long factors if one of them is long", LLAMA_CPP, needs="longrope")
def longrope_by_batch() -> Ops:
    def table(rope: Rope, head_dim: int, positions: Array, lengths: Array, p: Precision) -> Plan:
        return rope_table(rope, head_dim, positions, np.full_like(lengths, lengths.max()), p)

    return but(rope_table=table)


@cache.bug(
    "a request that grows long turns its new keys by the long factors, and keeps those that were turned by the short",
    LLAMA_CPP,
    needs="longrope",
)
def longrope_by_history() -> Ops:
    def table(rope: Rope, head_dim: int, positions: Array, lengths: Array, p: Precision) -> Plan:
        return rope_table(rope, head_dim, positions, positions + 1, p)

    return but(rope_table=table)
