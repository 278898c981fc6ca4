"""Which checkpoints are supported: two classes of transformers, and no key that makes another model of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .diagnostics import Diagnostics, shown

# The classes whose forward pass this package is, and what transformers assumes where their config.json is silent
# (configuration_llama.py, configuration_mistral.py). num_key_value_heads: of a Llama, num_attention_heads.
COMMON = {"rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2}
DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": COMMON | {"max_position_embeddings": 2048},
    "MistralForCausalLM": COMMON
    | {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
}
FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
SUPPORTED = f"supported are {' and '.join(DEFAULTS)}, unquantised or in bitsandbytes' nf4"

# Keys that change the numbers in some engine or fork, and the values with which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "partial_rotary_factor": (1, 1.0),
    "factor": (1, 1.0),  # of rope_scaling
    "compression_config": (),
    "auto_map": ({},),  # the repository brings its own code
    "use_sliding_window": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "attention_multiplier": (),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "no_rope_layers": ([],),
    "num_local_experts": (0, 1),
    "num_experts": (0, 1),
    "clip_qkv": (),
    "alibi": (False,),
}


def family_of(file: Path, data: Mapping[str, Any], diagnostics: Diagnostics) -> str | None:
    """The architecture, of which there must be one, and one that is supported."""
    named, model_type = data.get("architectures"), data.get("model_type")
    if not named and isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]  # written by something that did not know the class
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str) or named[0] not in DEFAULTS:
        diagnostics.problem(file, f"architectures {shown(named)} (model_type {shown(model_type)}): {SUPPORTED}")
        return None
    if model_type is not None and (not isinstance(model_type, str) or FAMILIES.get(model_type) != named[0]):
        diagnostics.problem(
            file, f"architectures {shown(named)} contradicts model_type {shown(model_type)}: {SUPPORTED}"
        )
        return None
    return named[0]


def check_neutral(file: Path, data: Mapping[str, Any], family: str, diagnostics: Diagnostics) -> None:
    """Keys that mean a different model are refused by name, unless their value makes no difference."""
    for key, values in NEUTRAL.items():
        if not is_neutral(key, data.get(key)):
            instead = f"must be {' or '.join(map(repr, values))}" if values else "is not supported"
            diagnostics.problem(file, f"{key} is {shown(data[key])}, which {instead}; {SUPPORTED}")
    for key in NOT_OF[family]:
        if data.get(key) not in (None, False):
            diagnostics.problem(
                file, f"{key} is {shown(data[key])}: {family} has none, and engines differ on obeying it"
            )
    kind = "sliding_attention" if data.get("sliding_window") is not None else "full_attention"
    layer_types = data.get("layer_types")
    if layer_types is not None and not (isinstance(layer_types, list) and all(layer == kind for layer in layer_types)):
        diagnostics.problem(file, f"layer_types is {shown(layer_types)}: every layer must be {kind!r}")


def is_neutral(key: str, value: Any) -> bool:
    """Whether a key's value makes no difference: null always, and what the table says (1 is not true)."""
    return value is None or any(value == neutral and type(value) is type(neutral) for neutral in NEUTRAL.get(key, ()))


# Keys that the other class has.
NOT_OF = {"LlamaForCausalLM": ("sliding_window",), "MistralForCausalLM": ("attention_bias", "mlp_bias")}
