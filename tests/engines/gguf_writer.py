"""A Hugging Face Llama and its PEFT adapters as GGUF, in float32, for the tests that run llama.cpp.

Two things are not copied. llama.cpp turns neighbouring rows of q and k together where transformers turns row i and row
i + head_dim / 2, so that the rows are interleaved, those of lora_B with them. And it knows one scale, alpha / r: an
rsLoRA gets the alpha that makes alpha / r what PEFT computes. llama.cpp's own convert_lora_to_gguf.py of September 2026
does the first and leaves out the second.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors

PREFIX = "base_model.model."  # of every name in a PEFT file


def write_base(folder: Path, out: Path) -> None:
    """The model without a tokenizer: it is asked in ids."""
    config = read_json(folder / "config.json")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    assert config["architectures"] == ["LlamaForCausalLM"], config["architectures"]
    assert rope.get("rope_type", "default") == "default", rope
    writer = gguf.GGUFWriter(out, "llama")
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.get("rope_theta") or config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("no_vocab")
    for name, array in read_tensors(folder / "model.safetensors").items():
        writer.add_tensor(gguf_name(name, config), interleaved(name, array, config))
    finish(writer)


def write_adapter(folder: Path, base: Path, out: Path) -> None:
    """One adapter of that base. Whatever this cannot say in GGUF is an error."""
    config, lora = read_json(base / "config.json"), read_json(folder / "adapter_config.json")
    for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "lora_bias", "fan_in_fan_out"):
        assert not lora.get(key), f"{folder}: {key} is {lora[key]}"
    assert lora.get("bias", "none") == "none", lora["bias"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    alpha = lora["lora_alpha"] * (lora["r"] ** 0.5 if lora.get("use_rslora") else 1)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, array in read_tensors(folder / "adapter_model.safetensors").items():
        module, matrix = name.removeprefix(PREFIX).removesuffix(".weight").rsplit(".", 1)
        assert matrix in ("lora_A", "lora_B"), name
        if matrix == "lora_B":
            array = interleaved(f"{module}.weight", array, config)
        writer.add_tensor(f"{gguf_name(f'{module}.weight', config)}.{matrix.lower()}", array)
    finish(writer)


def gguf_name(name: str, config: dict[str, Any]) -> str:
    """model.layers.0.self_attn.q_proj.weight -> blk.0.attn_q.weight"""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    found = names.get_name(name, try_suffixes=(".weight",))
    assert found is not None, name
    return found


def interleaved(name: str, rows: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """The rows of q and k in each head: 0, half, 1, half + 1, ... All other tensors as they are."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(name.split(".")[-2])
    if heads is None:
        return rows
    return np.ascontiguousarray(rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """In float32, whatever they were: numpy has no bfloat16, but its bits are the upper half of a float32's."""
    found = {}
    for name, tensor in safetensors.deserialize(path.read_bytes()):
        if tensor["dtype"] == "BF16":
            array = (np.frombuffer(tensor["data"], "<u2").astype("<u4") << 16).view("<f4")
        else:
            array = np.frombuffer(tensor["data"], {"F32": "<f4", "F16": "<f2"}[tensor["dtype"]]).astype("<f4")
        found[name] = array.reshape(tensor["shape"])
    return found


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
