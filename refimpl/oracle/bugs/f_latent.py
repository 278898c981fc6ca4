"""F. Not applied, where an engine absorbs kv_b_proj into what stands before and behind it (latent attention).

Such an engine has two copies of the weight: the module, to which LoRA is added, and its two halves, made when the model
was loaded. Whatever is computed with the halves has no LoRA, and nothing complains.
"""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...adapter_slots import LoraWeights
from ...arrays import Array, Precision, rounded
from ...attention import attention
from ...config import ModelConfig, Module, View
from ...layers import linear
from ...mla import EXPANDED, KV_B, Context, Heads, key_and_value_rows
from ...ops import Ops
from ...plans import AttentionMetadata
from .f_not_applied import not_applied, without
from .steps import but, loading

VLLM = "https://github.com/vllm-project/vllm/issues/48974"
SGLANG = "https://github.com/sgl-project/sglang/pull/25001"


@not_applied.bug(
    "the LoRA of kv_b_proj is applied nowhere: its weight was absorbed before there were adapters",
    VLLM,
    SGLANG,
    needs="kv_b_proj LoRA",
)
def latent_delta_dropped() -> Ops:
    return without(KV_B)


def rows_only(keys: bool) -> Ops:
    """LoRA of kv_b_proj in its rows of keys, or in those of values."""

    def change(module: Module, lora: LoraWeights, config: ModelConfig) -> LoraWeights:
        if module[1] != KV_B or config.mla is None:
            return lora
        kept = np.zeros(len(lora.B), bool)
        key_and_value_rows(kept, config.mla)[0 if keys else 1][:] = True
        bias = None if lora.bias is None else np.where(kept, lora.bias, np.zeros((), lora.bias.dtype))
        return dataclasses.replace(lora, B=np.where(kept[:, None], lora.B, np.zeros((), lora.B.dtype)), bias=bias)

    return loading(change)


@not_applied.bug("the LoRA of kv_b_proj is applied to keys, and not to values", needs="kv_b_proj LoRA")
def latent_delta_on_keys_only() -> Ops:
    return rows_only(keys=True)


@not_applied.bug("the LoRA of kv_b_proj is applied to values, and not to keys", needs="kv_b_proj LoRA")
def latent_delta_on_values_only() -> Ops:
    return rows_only(keys=False)


@not_applied.bug(
    "the LoRA of kv_b_proj is applied to the tokens of this step, and not to those whose latents are in the cache",
    VLLM,
    SGLANG,
    needs="kv_b_proj LoRA in steps",
)
def latent_delta_not_on_the_context() -> Ops:
    forgetting = ForgettingDelta()
    latent = dataclasses.replace(EXPANDED, heads=forgetting.heads)
    return but(latent=latent, attention=forgetting.attention)


class ForgettingDelta:
    """Once a step's attention has read its keys and values, they are in the cache as the base makes them."""

    def __init__(self) -> None:
        self.keys_and_values: tuple[Array, Array] | None = None  # of the base, of the layer that is computed now

    def heads(self, run: Context, h: Array, layer: int) -> Heads:
        """expanded_heads, and what they were without LoRA on kv_b_proj."""
        model, p = run.model, run.p

        def noted(x: Array, layer: int, name: str) -> Array:
            if name == KV_B and model.config.mla is not None:
                base = linear(x, model.linear((layer, name)).weight, None, p)
                keys, values = key_and_value_rows(base.T, model.config.mla)
                self.keys_and_values = keys.transpose(2, 0, 1), values.transpose(2, 0, 1)
            return run.project(x, layer, name)

        noting = SimpleNamespace(model=model, batch=run.batch, adapters=run.adapters, p=p, norm=run.norm, project=noted)
        return EXPANDED.heads(noting, h, layer)

    def attention(
        self, q: Array, k_cache: Array, v_cache: Array, metadata: AttentionMetadata, view: View, p: Precision
    ) -> Array:
        """Attention as it is; afterwards the cache is changed."""
        mixed = attention(q, k_cache, v_cache, metadata, view, p)
        if self.keys_and_values is not None:
            slots, (keys, values) = metadata.slot_mapping, self.keys_and_values
            still: Any = k_cache.reshape(-1, *k_cache.shape[2:])
            still[slots, :, -keys.shape[2] :] = rounded(keys, p.kv)
            v_cache.reshape(-1, *v_cache.shape[2:])[slots] = rounded(values, p.kv)
            self.keys_and_values = None
        return mixed
