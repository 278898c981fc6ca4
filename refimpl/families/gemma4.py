"""Gemma 4, text (transformers, modeling_gemma4.py): a Gemma 3 whose norms multiply by their weight alone.

The layers that see everything have heads of their own width and number, of which a share of the pairs turns; with
attention_k_eq_v they have no v_proj, and values are what k_proj makes. Values are normalised without a weight, scores
are not scaled, and each layer ends in a factor. E2B and E4B: the last layers read the keys and values of the last
layer of their kind before them, and each layer has an input of its own (layer_inputs.py). Experts are refused.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..config import LayerKind, Norms, Rope
from .family import Family, Keys, Kinds
from .gemma import BIASES, COMMON, TANH
from .gemma import read as read_embedding

# What a layer that reads another's keys and values does not have.
OF_KEYS = ("k_proj", "v_proj", "self_attn.k_norm", "self_attn.v_norm")
WIDTHS = ("head_dim", "num_key_value_heads")
Widths = dict[str, int]  # these of one layer
NORMS = Norms(
    q="self_attn.q_norm",
    k="self_attn.k_norm",
    v="self_attn.v_norm",
    attention_out="post_attention_layernorm",
    mlp_in="pre_feedforward_layernorm",
    mlp_out="post_feedforward_layernorm",
)


def read(keys: Keys) -> dict[str, Any]:
    """Refuse experts and attention in both directions; the width of the inputs of each layer."""
    if keys.flag("enable_moe_block"):
        keys.problem("enable_moe_block is true: experts beside the MLP are not supported")
    if keys.data.get("use_bidirectional_attention") not in (None, "vision"):  # "vision": among the tokens of an image
        keys.problem(f"use_bidirectional_attention is {keys.data['use_bidirectional_attention']!r}: not supported")
    width = keys.integer("hidden_size_per_layer_input", least=0)
    rows, vocab = keys.integer("vocab_size_per_layer_input"), keys.integer("vocab_size")
    if width and rows < vocab:
        keys.problem(f"vocab_size_per_layer_input {rows} is below vocab_size {vocab}")
    norms = NORMS if width == 0 else replace(NORMS, layer_input="post_per_layer_input_norm")
    inputs = {"hidden_size_per_layer_input": width, "vocab_size_per_layer_input": rows if width else 0}
    return read_embedding(keys) | inputs | {"norms": norms}


def kinds(keys: Keys, layers: Kinds) -> Kinds:
    """The heads of each layer, which have a v_proj, and whose keys and values the last ones read."""
    if layers[-1].window is not None:
        keys.problem("layer_types ends in 'sliding_attention', and transformers makes the last layer full all the same")
    full = ("v_proj",) if keys.flag("attention_k_eq_v") else ()
    plain = [replace(kind, absent=() if kind.window else full) for kind in layers]
    wide = [with_heads(keys, *pair) for pair in zip(plain, widths_of_layers(keys, layers), strict=True)]
    first = max(len(layers) - keys.integer("num_kv_shared_layers", least=0), 0)
    return (*wide[:first], *(sharing(keys, kind, wide[:first]) for kind in wide[first:]))


def with_heads(keys: Keys, kind: LayerKind, widths: Widths) -> LayerKind:
    """A layer with heads of this width and number, where they are not the model's."""
    head_dim, kv_heads = (None if widths[name] == keys.data[name] else widths[name] for name in WIDTHS)
    rope = None if kind.rope is None else replace(kind.rope, head_dim=head_dim)
    return replace(kind, head_dim=head_dim, kv_heads=kv_heads, rope=rope)


def sharing(keys: Keys, kind: LayerKind, before: Sequence[LayerKind]) -> LayerKind:
    """A layer that reads the keys and values of the last one of its kind among those before."""
    sources = [i for i, other in enumerate(before) if other.window == kind.window]
    if not sources:
        keys.problem("num_kv_shared_layers: a layer has none of its kind before it whose keys and values it could read")
    width = 2 * keys.integer("intermediate_size") if keys.flag("use_double_wide_mlp") else None
    return replace(kind, absent=OF_KEYS, kv_from=sources[-1] if sources else None, mlp_width=width)


def local_rope(keys: Keys, rope: Rope) -> Rope:
    """Refuse one rope for all layers, which the class does not read."""
    keys.problem("rope_parameters must hold one object for full_attention and one for sliding_attention")
    return rope


def widths_of_layers(keys: Keys, layers: Kinds) -> list[Widths]:
    """head_dim and num_key_value_heads of each layer: of those that see everything by keys of their own, as Google
    writes them, or by per_layer_config, as transformers 5.24 does."""
    alike = {name: keys.integer(name) for name in WIDTHS}
    full = alike | {"head_dim": keys.integer("global_head_dim", 512)}
    if keys.flag("attention_k_eq_v"):
        full["num_key_value_heads"] = keys.integer("num_global_key_value_heads", alike["num_key_value_heads"])
    by_kind = [alike if kind.window else full for kind in layers]
    if not keys.given("per_layer_config"):
        return by_kind
    by_layer = [alike | changes for changes in changes_of_layers(keys, len(layers))]
    named = [key for key in ("global_head_dim", "num_global_key_value_heads") if keys.given(key)]
    if named and by_layer != by_kind:
        keys.problem(f"per_layer_config and {named[0]} {keys.data[named[0]]} are both given and differ")
    return by_layer


def changes_of_layers(keys: Keys, count: int) -> list[Widths]:
    """What per_layer_config says of each layer; problems are noted."""
    given: Any = keys.data["per_layer_config"]
    changes: list[Widths] = [{} for _ in range(count)]
    for layer, values in given.items() if isinstance(given, dict) else [("", given)]:
        sound = isinstance(values, dict) and values.keys() <= set(WIDTHS) and layer in map(str, range(count))
        if not sound or not all(type(number) is int and number > 0 for number in values.values()):
            only = " and ".join(WIDTHS)
            keys.problem(f"per_layer_config says {layer!r}: {values!r}, of which only {only} are understood")
        else:
            changes[int(layer)] = values
    return changes


GEMMA4 = Family(
    "Gemma4ForCausalLM",
    "gemma4_text",
    {
        **COMMON,
        "vocab_size": 262144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "sliding_window": 512,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 262144,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        },
    },
    {"attention_scale": 1.0, "layer_scalar": True, "tensor_multiplier": True, "unrounded": ("norm_inner",)},
    numbers={"final_logit_softcapping": "logits_softcap"},
    biases=BIASES,
    read=read,
    obeys=("use_bidirectional_attention", "per_layer_config", "num_kv_shared_layers", "attention_k_eq_v"),
    activations=TANH,
    slides=lambda keys, layer: (layer + 1) % 6 != 0 and layer + 1 != keys.integer("num_hidden_layers"),
    kinds=kinds,
    local_rope=local_rope,
    wrappers=(("Gemma4ForConditionalGeneration", "gemma4"),),
)
FAMILIES = (GEMMA4,)
