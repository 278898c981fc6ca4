"""The metadata of a GGUF base -> the config.json that it was made from, as far as it changes the numbers.

What comes out is read as any other config.json (config_file.py). Keys that llama.cpp reads and this does not, and that
would change the numbers, are refused by name.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array, Float
from .dequantise import numbers
from .diagnostics import Diagnostics, shown
from .gguf_file import GgufFile
from .gguf_names import OUTER
from .gguf_parts import open_gguf
from .json_file import Keys

ARCHITECTURE = "llama"  # llama.cpp's name for Llama, Mistral, TinyLlama, SmolLM: src/models/llama.cpp
ROPE_FACTORS = "rope_freqs.weight"
ADVICE = "only models of the architecture 'llama' are read from GGUF; take the safetensors that it was made from"

# The key below "llama." and what it is called in config.json; None: it is read, and compared with the others, here.
INTEGERS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
}
OTHERS = (
    "vocab_size", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
    "rope.scaling.factor", "rope.scale_linear",
)  # fmt: skip

# Keys that change nothing: where a model was trained to, and how tensors lay in a file of long ago.
HARMLESS = ("rope.scaling.finetuned", "rope.scaling.original_context_length", "tensor_data_layout")
# Keys that change nothing at this value.
NEUTRAL: dict[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "use_parallel_residual": False,
    "attention.scale": 0.0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
}

END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")  # each ends a text (src/llama-vocab.cpp, special_eog_ids)


def gguf_config(path: Path, diagnostics: Diagnostics) -> dict[str, Any] | None:
    """The config.json of a base, or None with the problem noted."""
    file, before = open_gguf(path, diagnostics), len(diagnostics.problems)
    if file is None or (problem := not_a_base(file)):
        if file:
            diagnostics.problem(path, str(problem))
        return None
    keys = Keys(path, file.metadata, diagnostics)
    check_other_keys(file, keys)
    data: dict[str, Any] = {name: keys.integer(f"llama.{key}") for key, name in INTEGERS.items()}
    heads = data["num_attention_heads"]
    head_dim = keys.integer("llama.attention.key_length", max(data["hidden_size"] // heads, 1))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if keys.integer(key, head_dim) != head_dim:
            diagnostics.problem(path, f"{key} is {keys.data[key]}, and heads are {head_dim} wide: not supported")
    data |= {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": keys.integer("llama.vocab_size", len(vocabulary(file)) or None),
        "num_key_value_heads": keys.integer("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.positive("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.positive("llama.rope.freq_base", 10000.0),
        "tie_word_embeddings": f"{OUTER[(-1, 'lm_head')]}.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }
    data["rope_scaling"] = rope_scaling(file, keys, data)
    data |= token_ids(file)
    return data if len(diagnostics.problems) == before else None


def not_a_base(file: GgufFile) -> str | None:
    """Why this GGUF file is no base model that is read here, if it is none."""
    architecture, kind = file.metadata.get("general.architecture"), file.metadata.get("general.type", "model")
    if kind == "adapter":
        return "is a LoRA adapter, not a base model"
    if architecture != ARCHITECTURE:
        return f"general.architecture is {shown(architecture)}; {ADVICE}"
    if kind != "model":
        return f"general.type is {shown(kind)}, not 'model'"
    return None


def check_other_keys(file: GgufFile, keys: Keys) -> None:
    """Keys of the architecture that would make another model of it."""
    for key, value in file.metadata.items():
        name = key.removeprefix("llama.")
        if name == key or name in INTEGERS or name in OTHERS or name in HARMLESS:
            continue
        if name == "attention.sliding_window":
            if isinstance(value, int) and 0 < value < keys.integer("llama.context_length"):
                keys.diagnostics.problem(
                    file.path, f"{key} is {value}: the model has a window, and llama.cpp's llama has none"
                )
        elif name not in NEUTRAL or value != NEUTRAL[name]:
            keys.diagnostics.problem(file.path, f"{key} is {shown(value)}, which is not supported")


def rope_scaling(file: GgufFile, keys: Keys, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """rope_scaling of config.json: linear, llama3, or the factors themselves (as longrope that never changes)."""
    kind = keys.data.get("llama.rope.scaling.type", "linear")  # llama.cpp's default
    factor = keys.positive("llama.rope.scaling.factor", keys.positive("llama.rope.scale_linear", 1.0))
    linear = kind == "linear" and factor != 1
    if kind not in ("none", "linear"):
        keys.diagnostics.problem(file.path, f"llama.rope.scaling.type is {shown(kind)}; none and linear are supported")
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is None:
        return {"rope_type": "linear", "factor": factor} if linear else None
    if linear:
        keys.diagnostics.problem(file.path, f"has {ROPE_FACTORS} and a llama.rope.scaling.factor of {factor} as well")
    elif factors.type != "F32" or factors.shape != (data["head_dim"] // 2,):
        shape = f"{factors.type} {list(factors.shape)}"
        keys.diagnostics.problem(
            file.path, f"tensor {ROPE_FACTORS} is {shape}; it must be F32 [{data['head_dim'] // 2}]"
        )
    else:
        return scaling_of_factors(numbers("F32", factors.data), data)
    return None


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def scaling_of_factors(factors: Float[Array, " half"], data: Mapping[str, Any]) -> dict[str, Any] | None:
    """What rope_freqs.weight was computed from: each pair's frequency is divided by its factor.

    llama.cpp's converter writes these float32 numbers for rope_type llama3, whose parameters are in no key. Llama 3.1
    to 3.3 all have LLAMA3 and a factor, which is the greatest of them; where that formula gives these numbers, it is
    what the config says. Any others are said as they are."""
    if (factors == 1).all():
        return None
    factor = float(factors.max())
    if np.allclose(llama3_factors(factor, data["rope_theta"], data["head_dim"]), factors, rtol=1e-6, atol=0):
        return {"rope_type": "llama3", "factor": factor} | LLAMA3
    both = [float(value) for value in factors]
    return {
        "rope_type": "longrope",
        "short_factor": both,
        "long_factor": both,
        "attention_factor": 1.0,
        "original_max_position_embeddings": data["max_position_embeddings"],
    }


def llama3_factors(factor: float, theta: float, head_dim: int) -> Float[Array, " half"]:
    """1 for short waves, `factor` for long ones, a ramp of the reciprocals in between (layers.rope_frequencies)."""
    frequency = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = LLAMA3["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - keep) / factor + keep)


def token_ids(file: GgufFile) -> dict[str, Any]:
    """bos_token_id, and every id that ends a text. A file without a vocabulary has neither."""
    given = {key.removeprefix("tokenizer.ggml."): value for key, value in file.metadata.items()}
    if given.get("model") == "llama":  # llama.cpp's defaults for SentencePiece
        given = {"bos_token_id": 1, "eos_token_id": 2} | given
    ends = [given[key] for key in END_TOKENS if given.get(key) is not None]
    return {"bos_token_id": given.get("bos_token_id"), "eos_token_id": list(dict.fromkeys(ends))}


def vocabulary(file: GgufFile) -> list[Any]:
    """tokenizer.ggml.tokens, if it is there."""
    tokens = file.metadata.get("tokenizer.ggml.tokens", [])
    return tokens if isinstance(tokens, list) else []
