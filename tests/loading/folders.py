"""Model and adapter folders written by hand, whole or with one thing wrong. No torch, no PEFT."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.arrays import DTYPES
from refimpl.config import EMBED, LAYER_MODULES, ModelConfig, module_name
from refimpl.errors import LoracleError
from refimpl.loading.checkpoint import expected_tensors

SPELLED = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
}

# Nothing square, head_dim not hidden/heads, fewer key heads than query heads.
BASE = ModelConfig(
    vocab_size=13,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_ids=(2,),
)


def config_json(**changes: Any) -> dict[str, Any]:
    """The config.json of BASE; a change to ... removes the key."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 13,
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.40.0",
        "use_cache": True,
    }
    return changed(config, changes)


def adapter_json(**changes: Any) -> dict[str, Any]:
    """An adapter_config.json of PEFT 0.18 for all seven linear layers, rank 3."""
    config = {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 7,
        "lora_dropout": 0.05,
        "target_modules": list(LAYER_MODULES),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "loracle/base",
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
        "qalora_group_size": 16,
        "megatron_core": "megatron.core",
        "loftq_config": {},
        "target_parameters": None,
        "peft_version": "0.18.0",
    }
    return changed(config, changes)


def changed(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (config | dict(changes)).items() if value is not ...}


def random(shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(DTYPES[dtype])


def model_tensors(config: ModelConfig = BASE, dtype: str = "float32") -> dict[str, np.ndarray]:
    return {name: random(shape, i, dtype) for i, (name, shape) in enumerate(expected_tensors(config).items())}


def lora_tensors(
    config: ModelConfig = BASE, rank: int = 3, modules: tuple[str, ...] = LAYER_MODULES, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """A and B of every such module, as PEFT modules them."""
    tensors = {}
    for seed, module in enumerate(config.modules()):
        if module[1] in modules:
            d_out, d_in = config.shape(module)[::-1] if module == EMBED else config.shape(module)
            a, b = ("lora_embedding_A", "lora_embedding_B") if module == EMBED else ("lora_A.weight", "lora_B.weight")
            tensors[lora_name(module, a)] = random((rank, d_in), seed, dtype)
            tensors[lora_name(module, b)] = random((d_out, rank), seed + 100, dtype)
    return tensors


def lora_name(module: tuple[int, str], part: str) -> str:
    return f"base_model.model.{module_name(module)}.{part}"


def safetensors_bytes(tensors: Mapping[str, np.ndarray], metadata: Any = None) -> bytes:
    """A safetensors file (the library's numpy writer knows no bfloat16)."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position, parts = 0, []
    for name, x in tensors.items():
        parts.append(np.ascontiguousarray(x).tobytes())
        spelled = SPELLED[x.dtype.name]
        header[name] = {"dtype": spelled, "shape": list(x.shape), "data_offsets": [position, position + x.nbytes]}
        position += x.nbytes
    return with_header(json.dumps(header), b"".join(parts))


def with_header(header: str, data: bytes = b"") -> bytes:
    raw = header.encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + data


def write_model(folder: Path, tensors: Mapping[str, np.ndarray] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(**changes)))
    raw = safetensors_bytes(model_tensors() if tensors is None else tensors, {"format": "pt"})
    (folder / "model.safetensors").write_bytes(raw)
    return folder


def write_adapter(folder: Path, tensors: Mapping[str, np.ndarray] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(adapter_json(**changes)))
    raw = safetensors_bytes(lora_tensors() if tensors is None else tensors, {"format": "pt"})
    (folder / "adapter_model.safetensors").write_bytes(raw)
    return folder


LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 167832240\n"
)


@contextmanager
def refused(error: type[LoracleError], *says: str) -> Iterator[None]:
    """The block raises this error, whose one line says all of that."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    for piece in says:
        assert piece in message
    assert len(message.splitlines()) == 1
