"""safetensors -> arrays; names of the checkpoint -> fields of the model."""

from dataclasses import dataclass
from typing import Any

from .arrays import Array, Float
from .config import LM_HEAD, ModelConfig, Site


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x W^T + b."""

    weight: Float[Array, "d_out d_in"]
    bias: Float[Array, " d_out"] | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """One transformer layer, in the order in which the forward pass meets its weights."""

    input_layernorm: Float[Array, " d_model"]
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    post_attention_layernorm: Float[Array, " d_model"]
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded base model: read-only arrays, and nothing that changes while it runs."""

    config: ModelConfig
    embed_tokens: Float[Array, "vocab d_model"]
    layers: tuple[Layer, ...]
    norm: Float[Array, " d_model"]
    lm_head: Linear  # its weight is embed_tokens itself where they are tied
    tokenizer: Any = None
    dtype: str = "float32"
    device: str = "cpu"

    def linear(self, site: Site) -> Linear:
        """The base weights at a site."""
        layer, module = site
        return self.lm_head if site == LM_HEAD else getattr(self.layers[layer], module)
