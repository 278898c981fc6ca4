"""A base model: its arrays, by the names of the checkpoint (loading/model_folder.py reads them)."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from .adapter import TokenRows
from .arrays import Array, Float, Precision
from .config import EMBED, LAYER_INPUTS, LM_HEAD, SCORE, SINKS, ModelConfig, Module, View


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x W^T + b."""

    weight: Float[Array, "d_out d_in"]
    bias: Float[Array, " d_out"] | None = None
    tokens: TokenRows | None = None  # rows of the embedding or the lm_head that an adapter has in place of the weight's


class PackedLinear(Linear):
    """A layer that is held as its checkpoint holds it, and whose weight is made of that each time that it is used."""

    def __init__(self, read: Callable[[], Array], packing: tuple[Array, ...], bias: Array | None = None) -> None:
        """read: the weight, the same numbers every time. packing: what it is made of."""
        for name, value in (("read", read), ("packing", packing), ("bias", bias), ("tokens", None)):
            object.__setattr__(self, name, value)

    read: Callable[[], Array]
    packing: tuple[Array, ...]

    @property
    def weight(self) -> Float[Array, "d_out d_in"]:
        """The numbers, made anew: keep them while they are needed."""
        return self.read()


class Base(Protocol):
    """What adapters are bound to: a model of text, below, or one of pictures (pictures/weights.py)."""

    @property
    def config(self) -> Any:
        """Its shape."""

    @property
    def dtype(self) -> str:
        """What its weights are held in."""

    @property
    def device(self) -> str:
        """Where they lie."""

    def linear(self, module: Module) -> Linear:
        """Return the base weights of a module."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One transformer layer: its norms and its linear layers, by their names in the checkpoint.

    A Llama's are input_layernorm and post_attention_layernorm, and config.LAYER_MODULES."""

    norms: Mapping[str, Float[Array, " d_norm"]]
    linears: Mapping[str, Linear]
    vectors: Mapping[str, Array] = field(default_factory=dict)  # whatever else it has (ModelConfig.vectors_of)


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What makes the inputs that each layer has beside x in Gemma 4's small models (layer_inputs.py)."""

    embed_tokens: Float[Array, "vocab d_inputs"]  # of all layers, one behind the other
    projection: Linear
    norm: Float[Array, " d_input"]


@dataclass(frozen=True, eq=False, repr=False)
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
    layer_inputs: LayerInputs | None = None
    score: Linear | None = None  # a classification head, in place of the lm_head
    # What prefix keys call this base: no other model has it, not even another load of the same folder. A digest of the
    # weights would say the same to the one engine that asks, after reading all of them.
    identity: bytes = field(init=False, default_factory=lambda: os.urandom(16))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process its arrays are read-only as well: there, too, small ones are packed once (matmul.py)."""
        self.__dict__.update(state)
        for array in self.arrays():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False

    def linear(self, module: Module) -> Linear:
        """Return the base weights of a module."""
        layer, name = module
        if module == SCORE:  # without one, a head of no labels
            return self.score or Linear(self.embed_tokens[:0])
        if module == EMBED:
            return Linear(self.embed_tokens)
        if module == LAYER_INPUTS and self.layer_inputs is not None:
            return self.layer_inputs.projection
        return self.lm_head if module == LM_HEAD else self.layers[layer].linears[name]

    def view(self, layer: int) -> View:
        """How one layer's queries see the keys before them: the config's view, and the layer's sinks if it has some."""
        view, sinks = self.config.view(layer), self.layers[layer].vectors.get(SINKS)
        return view if sinks is None else replace(view, sinks=sinks)

    def precision(self, p: Precision) -> Precision:
        """The points at which this model rounds. Of the preset "transformers", which says Llama's, those at which the
        family's own class does not round are taken back to `compute`."""
        if p.preset != "transformers":
            return p
        return replace(p, **dict.fromkeys(self.config.unrounded, p.compute))

    def __repr__(self) -> str:
        config = self.config
        shape = f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, vocab {config.vocab_size}"
        return f"Model({shape}, {self.dtype}, {self.device})"

    def arrays(self) -> list[Array]:
        """Every array, once, in a fixed order; of what is packed, what it is made of."""
        tied = self.lm_head.weight is self.embed_tokens
        arrays = [self.norm, self.embed_tokens] if tied else [self.norm, self.embed_tokens, self.lm_head.weight]
        if self.layer_inputs is not None:
            inputs = self.layer_inputs
            arrays += [inputs.embed_tokens, inputs.projection.weight, inputs.norm]
        arrays += [self.score.weight] if self.score else []
        for layer in dict.fromkeys(self.layers):  # one may be there several times (replication.py)
            arrays += layer.norms.values()
            arrays += layer.vectors.values()
            for linear in layer.linears.values():
                arrays += linear.packing if isinstance(linear, PackedLinear) else [linear.weight]
                arrays += [] if linear.bias is None else [linear.bias]
        return arrays

    @property
    def nbytes(self) -> int:
        """The size of all weights, as they are held."""
        return sum(x.nbytes for x in self.arrays())
