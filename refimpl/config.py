"""What a model is: a frozen ModelConfig, in the names of a Hugging Face config.json (loading/config_file.py reads it).

The legend of axis names. Every public signature of the package uses these and no others:

    tokens      all scheduled tokens of all requests, one behind the other (batch.py has the picture)
    requests    the requests of one batch;  starts: requests + 1, where their runs of tokens begin and end
    rows        the tokens that get logits
    d_model     hidden_size, the width of the residual stream
    d_in d_out  the two widths of one linear layer
    d_mlp       intermediate_size
    heads       query heads;  kv_heads: key and value heads;  head_dim: the width of one head;  value_dim: of its value
    rank        r of one adapter in one module
    k           the most adapters that any request of the batch sums (usually 1)
    vocab       rows of the embedding table
    blocks      blocks of the paged cache;  block_size: tokens per block;  table: blocks of the longest request
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from .mla_config import KVShape, Mla
from .module_names import (
    ATTENTION_MODULES,
    EMBED,
    LAYER_INPUTS,
    LAYER_MODULES,
    LM_HEAD,
    MLP_MODULES,
    PARENTS,
    ROOTS,
    SCORE,
    SINKS,
    Module,
    module_name,
    short_name,
)
from .moe_config import ClampedGate, Groups, Mlp, Moe, Stacked
from .norms import LLAMA_NORMS, Norms
from .rope import DEFAULT_ROPE, Rope
from .view import View

# What is imported from here although it stands in a file of its own.
__all__ = ["ATTENTION_MODULES", "LAYER_MODULES", "MLP_MODULES", "ROOTS", "Groups", "Mlp", "Moe", "Norms", "Stacked"]
__all__ += ["EMBED", "LAYER_INPUTS", "LM_HEAD", "PARENTS", "SCORE", "SINKS", "ClampedGate", "KVShape", "Mla", "Module"]
__all__ += ["Rope", "View", "module_name", "short_name"]


@dataclass(frozen=True)
class LayerKind:
    """What differs from layer to layer in one model."""

    window: int | None = None
    rope: Rope | None = DEFAULT_ROPE  # None: no position at all (SmolLM3)
    # None: what the model has.
    head_dim: int | None = None
    kv_heads: int | None = None
    mlp_width: int | None = None
    absent: tuple[str, ...] = ()  # modules that the others have, and this one has not. Without v_proj, k_proj is both
    kv_from: int | None = None  # it has no keys and values, and reads those of this layer
    sparse: bool = False  # it has experts (ModelConfig.moe), and no MLP of its own


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder, in the names of its config.json. What follows eos_token_ids is as Llama has it, unless
    the family says otherwise (families/)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope: Rope = DEFAULT_ROPE
    sliding_window: int | None = None  # a token sees itself and the window-1 tokens before it
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # on q, k, v and o
    mlp_bias: bool = False
    max_position_embeddings: int = 2048
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    wrapped: bool = False  # it is the text part of a model of images and text: its tensors have a prefix
    layers: tuple[LayerKind, ...] = ()  # where layers differ; empty: each has `sliding_window` and `rope`
    norms: Norms = LLAMA_NORMS
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # or one module for the three
    mla: Mla | None = None  # keys and values are made of a latent (mla.py); head_dim is then q's and k's
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")  # one for both, or a single one: an MLP without a gate
    down: str = "down_proj"
    parallel: bool = False  # the MLP reads what attention reads, and both are added to x (Cohere)
    moe: Moe | None = None  # the experts of each layer, or of those whose kind says so
    unread_layers: int = 0  # of the checkpoint, after the last: they predict further tokens (multi-token prediction)
    biased: tuple[str, ...] = ()  # further modules that have a bias
    activation: str | ClampedGate = "silu"  # or gelu_tanh, relu2
    attention_scale: float | None = None  # None: 1/sqrt(head_dim)
    attention_softcap: float | None = None
    sinks: bool = False  # each query head of each layer has one (View.sinks)
    logits_softcap: float | None = None
    embedding_multiplier: float = 1.0
    tensor_multiplier: bool = False  # that factor is a tensor of the model's type, and so rounded to it (Gemma)
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0  # logits are divided by it
    layer_replication: tuple[tuple[int, int], ...] = ()  # its layers are these of a base (replication.py)
    labels: int = 0  # it has a classification head (score) of so many, and no lm_head
    pad_token_id: int | None = field(default=None, compare=False)  # never scored (classification.py)
    name_or_path: str = field(default="", compare=False)  # what the checkpoint calls itself, if anything
    model_type: str = field(default="", compare=False)  # its family's, as transformers calls it
    # config.json as it was read, the text model's part of it: what save_model writes again.
    keys: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    layer_scalar: bool = False  # each layer's x is multiplied by a number of the checkpoint (Gemma 4)
    hidden_size_per_layer_input: int = 0  # each layer has an input of this width for each token (layer_inputs.py)
    vocab_size_per_layer_input: int = 0
    unrounded: tuple[str, ...] = ()  # points of Precision at which transformers does not round here, but does in Llama

    @property
    def unsharded(self) -> "ModelConfig":
        """The config of the model that the checkpoint holds: another one where this is one rank's part of it
        (parallel/layout.py), and adapters are still checked against the whole."""
        return self

    @property
    def beyond_llama(self) -> tuple[str, ...]:
        """The fields in which it is no Llama or Mistral: what is written for those alone must refuse it by name."""
        names = [item.name for item in fields(self)]
        later = fields(self)[names.index("eos_token_ids") + 1 :]
        differences = [item.name for item in later if item.compare and getattr(self, item.name) != item.default]
        turning = ("partial_rotary_factor", "interleaved", "query_growth")
        return (*differences, *(name for name in turning if getattr(self.rope, name) != getattr(Rope(), name)))

    def kind(self, layer: int) -> LayerKind:
        """What is particular to one layer."""
        return self.layers[layer] if self.layers else self._alike

    @cached_property
    def _alike(self) -> LayerKind:
        """What is particular to every layer, where all are alike: asked for many times in each step."""
        return LayerKind(self.sliding_window, self.rope, sparse=self.moe is not None)

    def view(self, layer: int) -> View:
        """How one layer's queries see the keys before them."""
        return View(self.kind(layer).window, self.attention_scale, self.attention_softcap)

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The different rotations that the layers use."""
        kinds = self.layers or (self.kind(0),)
        return tuple(dict.fromkeys(kind.rope for kind in kinds if kind.rope is not None))

    def rope_key(self, limit: int) -> bytes:
        """What the rotations add to a prefix key: keys that were turned by the long factors serve no short request."""
        return b"long" if any(rope.is_long(limit) for rope in self.ropes) else b""

    def head_shape(self, layer: int) -> tuple[int, int]:
        """(kv_heads, head_dim) of a layer: what one token's key is in the cache."""
        kind = self.kind(layer)
        return kind.kv_heads or self.num_key_value_heads, kind.head_dim or self.head_dim

    def kv_shape(self, layer: int) -> KVShape:
        """What one token keeps in the cache of a layer."""
        kv_heads, head_dim = self.head_shape(layer)
        return KVShape(kv_heads, head_dim, head_dim if self.mla is None else self.mla.v_head_dim)

    @property
    def uneven(self) -> bool:
        """Whether layers differ in their heads, in their modules, or in the width of their MLP."""
        return any(replace(kind, window=None, rope=Rope(), sparse=False) != LayerKind() for kind in self.layers)

    @property
    def kv_layers(self) -> list[int]:
        """The layers that have keys and values of their own."""
        return [i for i in range(self.num_hidden_layers) if self.kind(i).kv_from is None]

    @property
    def uniform_kv(self) -> bool:
        """Whether each layer has keys and values of its own, and all are of one width."""
        layers = range(self.num_hidden_layers)
        return self.mla is None and self.kv_layers == [*layers] and len({self.head_shape(i) for i in layers}) <= 1

    def head_widths(self, layer: int = 0) -> tuple[int, int, int]:
        """How wide queries, keys and values are, all heads together."""
        kv_heads, head_dim = self.head_shape(layer)
        return self.num_attention_heads * head_dim, kv_heads * head_dim, kv_heads * head_dim

    def mlp_width(self, layer: int = 0) -> int:
        """The width of a layer's MLP."""
        return self.kind(layer).mlp_width or self.intermediate_size

    def mlp(self, layer: int) -> Mlp:
        """The MLP of a layer without experts."""
        return Mlp(self.gate_up, self.down, self.mlp_width(layer))

    @property
    def layer_modules(self) -> tuple[str, ...]:
        """The linear layers that some transformer layer has, in the order of the forward pass."""
        return tuple(dict.fromkeys(name for i in range(self.num_hidden_layers) for name in self.modules_of(i)))

    @property
    def layer_inputs_width(self) -> int:
        """How wide the inputs of all layers are together."""
        return self.num_hidden_layers * self.hidden_size_per_layer_input

    def modules_of(self, layer: int) -> tuple[str, ...]:
        """Those of one layer."""
        kind = self.kind(layer)
        block = self.moe.modules if self.moe and kind.sparse else self.mlp(layer).modules
        inputs = ("per_layer_input_gate", "per_layer_projection") if self.hidden_size_per_layer_input else ()
        modules = (*self.qkv, "o_proj", *block, *inputs)
        return tuple(name for name in modules if name not in kind.absent) if kind.absent else modules

    def qkv_of(self, layer: int) -> tuple[str, ...]:
        """The modules of one layer that make queries, keys and values."""
        absent = self.kind(layer).absent
        return tuple(name for name in self.qkv if name not in absent) if absent else self.qkv

    def vectors_of(self, layer: int) -> dict[str, int]:
        """What one layer has besides norms and linear layers, by its name in the checkpoint, and its width."""
        vectors = {SINKS: self.num_attention_heads} if self.sinks else {}
        sparse = self.moe is not None and self.kind(layer).sparse
        if sparse and self.moe and self.moe.correction:
            vectors[self.moe.correction] = self.moe.experts
        if self.layer_scalar:
            vectors["layer_scalar"] = 1
        return vectors

    def shape(self, module: Module | str) -> tuple[int, int]:
        """(d_out, d_in) of a module's weight, as it lies in the checkpoint. For embed_tokens: (vocab, d_model).

        A name alone is that of layer 0, for what is only used where all layers are alike."""
        layer, name = (0, module) if isinstance(module, str) else module
        for part in (self.mla, self.moe):
            if part is not None and (shape := part.shape(name, self.hidden_size)):
                return shape
        (q, kv, _), mlp = self.head_widths(layer), self.mlp_width(layer)
        d_out = {
            "q_proj": q,
            "k_proj": kv,
            "v_proj": kv,
            "qkv_proj": q + 2 * kv,
            "gate_proj": mlp,
            "up_proj": mlp,
            "c_fc": mlp,
            "gate_up_proj": 2 * mlp,
            "input_linear": 2 * mlp,
            "per_layer_input_gate": self.hidden_size_per_layer_input,
            "per_layer_model_projection": self.layer_inputs_width,
            "embed_tokens": self.vocab_size,
            "lm_head": self.vocab_size,
        }
        d_in = {"o_proj": q, self.down: mlp, "per_layer_projection": self.hidden_size_per_layer_input}
        return d_out.get(name, self.hidden_size), d_in.get(name, self.hidden_size)

    def norms_of(self, layer: int) -> tuple[str, ...]:
        """The norms of one layer, by name."""
        absent = self.kind(layer).absent
        latent = self.mla.norms if self.mla else ()
        return tuple(name for name in (*self.norms.names, *latent) if name not in absent)

    def norm_width(self, name: str, layer: int = 0) -> int:
        """How many weights a layer's norm of this name has."""
        if self.mla and name in self.mla.norms:
            return self.mla.norms[name]
        q, kv, _ = self.head_widths(layer)
        projections = {self.norms.q: q, self.norms.k: kv} if self.norms.whole_projection else {}
        heads = (self.norms.q, self.norms.k, self.norms.v, self.norms.q_turned, self.norms.k_turned)
        return projections.get(name, self.head_shape(layer)[1] if name in heads else self.hidden_size)

    def modules(self) -> list[Module]:
        """Every module that LoRA can target, in the order of the forward pass."""
        inner = [(i, name) for i in range(self.num_hidden_layers) for name in self.modules_of(i)]
        inputs = [LAYER_INPUTS] if self.hidden_size_per_layer_input else []
        return [EMBED, *inputs, *inner, *([] if self.labels else [LM_HEAD])]

    def for_logits_alone(self, module: Module) -> bool:
        """Whether the forward pass has a module only of the tokens that get logits: from o of the last layer on."""
        layer, name = module
        return module == LM_HEAD or (layer == self.num_hidden_layers - 1 and name not in self.qkv)

    def has_bias(self, module: str) -> bool:
        """Whether the checkpoint holds a bias for this module."""
        flags = {"self_attn": self.attention_bias, "mlp": self.mlp_bias}
        routed = self.moe is not None and self.moe.has_bias(module)
        return routed or flags.get(PARENTS.get(module, ""), False) or module in self.biased
