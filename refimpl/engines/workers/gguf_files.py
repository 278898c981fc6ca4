"""A Hugging Face Llama and its PEFT adapters as GGUF, in float32.

Two things are not copied. llama.cpp turns neighbouring rows of q and k together where transformers turns row i and row
i + head_dim / 2, so that the rows are interleaved, those of lora_B with them. And it knows one scale per adapter,
alpha / r: an rsLoRA gets the alpha that makes alpha / r what PEFT computes. llama.cpp's own convert_lora_to_gguf.py of
September 2026 does the first and leaves out the second.
"""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors

PREFIX = "base_model.model."  # of every name in a PEFT file
REFUSED = ("modules_to_save", "use_dora", "lora_bias", "fan_in_fan_out", "layer_replication", "trainable_token_indices")


def write_base(folder: Path, out: Path) -> None:
    """Write the model, without a tokenizer: prompts are token ids. ValueError for what this cannot express in GGUF."""
    config = read_json(folder / "config.json")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if config["architectures"] not in (["LlamaForCausalLM"], ["MistralForCausalLM"]):
        raise ValueError(f"{folder}: {config['architectures']} is not written as GGUF here")
    if config.get("sliding_window") and config["architectures"] == ["MistralForCausalLM"]:
        raise ValueError(f"{folder}: sliding_window {config['sliding_window']}: llama.cpp's llama has none")
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"{folder}: rope_type {kind!r} is not written as GGUF here")
    writer = gguf.GGUFWriter(out, "llama")
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("no_vocab")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, theta, head_dim))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: has no .safetensors")
    for file in files:
        for name, array in read_tensors(file).items():
            if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.get("tie_word_embeddings")):
                continue
            writer.add_tensor(gguf_name(name, config), interleaved(name, array, config))
    finish(writer)


def write_adapter(folder: Path, base: Path, out: Path) -> None:
    """Write one adapter of that base. ValueError for what this cannot express in GGUF.

    GGUF has one alpha. Where patterns give modules scales that no single alpha can, the rest goes into lora_B."""
    config, peft = read_config(base), read_json(folder / "adapter_config.json")
    for key in REFUSED:
        if peft.get(key):
            raise ValueError(f"{folder}: {key} {peft[key]!r} is not written as GGUF here")
    if peft.get("bias", "none") != "none":
        raise ValueError(f"{folder}: bias {peft['bias']!r} is not written as GGUF here")
    tensors: dict[str, dict[str, np.ndarray]] = {}
    for name, array in read_tensors(folder / "adapter_model.safetensors").items():
        module, _, matrix = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if matrix not in ("lora_A", "lora_B"):
            raise ValueError(f"{folder}: tensor {name!r} is not written as GGUF here")
        tensors.setdefault(module, {})[matrix] = array
    alphas = {module: peft_alpha(peft, module, len(pair["lora_A"])) for module, pair in tensors.items()}
    alpha = next(iter(alphas.values()))
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for module, pair in tensors.items():
        weight = f"{module}.weight"
        B = interleaved(weight, pair["lora_B"], config)
        if alphas[module] != alpha:
            B = (B * (alphas[module] / alpha)).astype(np.float32)
        writer.add_tensor(f"{gguf_name(weight, config)}.lora_a", pair["lora_A"])
        writer.add_tensor(f"{gguf_name(weight, config)}.lora_b", B)
    finish(writer)


def peft_alpha(peft: dict[str, Any], module: str, r: int) -> float:
    """Return the alpha for which alpha / r is PEFT's scale of this module."""
    alpha = float(pattern(peft.get("alpha_pattern"), module, peft["lora_alpha"]))
    return alpha * r**0.5 if peft.get("use_rslora") else alpha


def pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first key that is the whole name or its end after a dot, as in PEFT."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)


def llama3_factors(rope: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """Return the divisors of the frequencies: 1 for short wavelengths, `factor` for long ones, smooth between."""
    frequency = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)  # in the original context
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def gguf_name(name: str, config: dict[str, Any]) -> str:
    """Return a tensor's name in GGUF: model.layers.0.self_attn.q_proj.weight -> blk.0.attn_q.weight."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if renamed is None:
        raise ValueError(f"tensor {name!r} has no name in GGUF")
    return renamed


def interleaved(name: str, rows: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Return the rows of q and k in the order 0, half, 1, half + 1, ... of each head; other tensors as they are."""
    heads = config["num_attention_heads"]
    kinds = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    if name.split(".")[-2] not in kinds:
        return rows
    split = rows.reshape(kinds[name.split(".")[-2]], 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return all tensors in float32. NumPy has no bfloat16, but its bits are the upper half of a float32's."""
    tensors = {}
    for name, tensor in safetensors.deserialize(path.read_bytes()):
        if tensor["dtype"] == "BF16":
            array = (np.frombuffer(tensor["data"], "<u2").astype("<u4") << 16).view("<f4")
        else:
            array = np.frombuffer(tensor["data"], {"F32": "<f4", "F16": "<f2"}[tensor["dtype"]]).astype("<f4")
        tensors[name] = array.reshape(tensor["shape"])
    return tensors


def read_config(base: Path) -> dict[str, Any]:
    """Return the config.json of a folder; of a GGUF file, the keys of it that an adapter's rows and names need."""
    if base.is_dir():
        return read_json(base / "config.json")
    fields = gguf.GGUFReader(base).fields
    heads = fields["llama.attention.head_count"].contents()
    kv_heads = fields.get("llama.attention.head_count_kv")
    return {
        "num_hidden_layers": fields["llama.block_count"].contents(),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads.contents() if kv_heads else heads,
    }


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file, and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
