"""Gemma 4, text (transformers, modeling_gemma4.py): a Gemma 3 whose norms multiply by their weight alone.

The layers that see everything have heads of their own width and number, of which a share of the pairs turns; with
attention_k_eq_v they have no v_proj, and values are what k_proj makes. Values are normalised without a weight, scores
are not scaled, and each layer ends in a factor. E2B and E4B: the last layers read the keys and values of the last
layer of their kind before them, and each layer has an input of its own (layer_inputs.py). Experts are refused.
"""

from dataclasses import replace
from typing import Any

from ..config import LayerKind, Norms, Rope
from .family import Family, Keys, Kinds
from .gemma import BIASES, COMMON, TANH
from .gemma import read as read_embedding

# What a layer that reads another's keys and values does not have.
OF_KEYS = ("k_proj", "v_proj", "self_attn.k_norm", "self_attn.v_norm")
WIDTHS = ("head_dim", "num_key_value_heads")
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
    """The heads of the layers that see everything, and of the last layers whose keys and values they read."""
    if layers[-1].window is not None:
        keys.problem(
            "layer_types ends in 'sliding_attention', and transformers makes the last layer full whatever it says"
        )
    first_shared = len(layers) - keys.integer("num_kv_shared_layers", least=0)
    widths, double = widths_of_layers(keys, layers), keys.flag("use_double_wide_mlp")
    result: list[LayerKind] = []
    for i, kind in enumerate(layers):
        head_dim, kv_heads = (
            number if number != keys.data.get(name) else None for name, number in zip(WIDTHS, widths[i], strict=True)
        )
        kind = replace(
            kind, head_dim=head_dim, kv_heads=kv_heads, rope=kind.rope and replace(kind.rope, head_dim=head_dim)
        )
        if kind.window is None and keys.flag("attention_k_eq_v"):
            kind = replace(kind, absent=("v_proj",))
        if i >= first_shared:
            before = [j for j in range(max(first_shared, 0)) if layers[j].window == kind.window]
            if not before:
                keys.problem(f"num_kv_shared_layers: no layer of its kind before layer {i} has keys and values")
            wide = 2 * keys.integer("intermediate_size") if double else None
            kind = replace(kind, absent=OF_KEYS, kv_from=before[-1] if before else None, mlp_width=wide)
        result.append(kind)
    return tuple(result)


def local_rope(keys: Keys, rope: Rope) -> Rope:
    """Refuse one rope for all layers, which the class does not read."""
    keys.problem("rope_parameters must hold one object for full_attention and one for sliding_attention")
    return rope


def widths_of_layers(keys: Keys, layers: Kinds) -> list[tuple[int, int]]:
    """(head_dim, kv_heads) of each layer: by global_head_dim and num_global_key_value_heads, as Google writes them, or
    by per_layer_config, as transformers 5.24 does."""
    given: Any = keys.data.get("per_layer_config")
    alike = {name: keys.integer(name) for name in WIDTHS}
    of_full = alike | {"head_dim": keys.integer("global_head_dim", 512)}
    if keys.flag("attention_k_eq_v") and keys.given("num_global_key_value_heads"):
        of_full["num_key_value_heads"] = keys.integer("num_global_key_value_heads")
    by_kind = [of_full if kind.window is None else alike for kind in layers]
    if given is None:
        return [(widths["head_dim"], widths["num_key_value_heads"]) for widths in by_kind]
    changes = given if isinstance(given, dict) else {"": given}
    for layer, values in changes.items():
        understood = isinstance(values, dict) and values.keys() <= set(WIDTHS) and layer in map(str, range(len(layers)))
        if not understood or not all(type(number) is int and number > 0 for number in values.values()):
            keys.problem(
                f"per_layer_config says {layer!r}: {values!r}, of which only {' and '.join(WIDTHS)} are understood"
            )
            return [(1, 1)] * len(layers)
    by_layer = [alike | changes.get(str(i), {}) for i in range(len(layers))]
    named = [key for key in ("global_head_dim", "num_global_key_value_heads") if keys.given(key)]
    if named and by_layer != by_kind:
        keys.problem(f"per_layer_config and {named[0]} {keys.data[named[0]]} are both given and differ")
    return [(widths["head_dim"], widths["num_key_value_heads"]) for widths in by_layer]


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
    obeys=("use_bidirectional_attention", "per_layer_config"),
    activations=TANH,
    slides=lambda keys, layer: (layer + 1) % 6 != 0 and layer + 1 != keys.integer("num_hidden_layers"),
    kinds=kinds,
    local_rope=local_rope,
    wrappers=(("Gemma4ForConditionalGeneration", "gemma4"),),
)
FAMILIES = (GEMMA4,)
