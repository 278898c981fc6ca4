"""A Model -> a Hugging Face folder: config.json, model.safetensors, and its tokenizer."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from ..arrays import Array, to_host
from ..config import LM_HEAD, ModelConfig, Module, Rope, module_name
from ..errors import WeightsError
from ..loading.checkpoint import EMBED_WEIGHT, SINGLE, expected_tensors, open_checkpoint
from ..loading.config_file import read_config
from ..loading.conversion import converted
from ..loading.diagnostics import Diagnostics
from ..loading.rope_scaling import KINDS
from ..tokenizer import Tokenizer
from ..weights import Linear, Model
from .files import new_folder, write_safetensors

# What a tokenizer consists of: tokenizer.json is what is read here, the others are for transformers and its readers.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def save_model(model: Model, folder: Path) -> None:
    """Write a new folder that `load_model(folder, model.dtype)` and transformers read: the same bits, the same config.

    A head that the config ties, but that is no longer the embedding (`merged` unties them), is written out, and the
    config says so. WeightsError, and no folder, for a model that its config does not describe: a vocabulary that has
    grown, a bias that is in no checkpoint, a window together with biases (a Mistral has none), NaN; and for a model of
    another family."""
    folder = Path(folder)
    if model.config.beyond_llama:
        names = ", ".join(model.config.beyond_llama)
        raise WeightsError(f"{folder}: a model is written as a Llama or Mistral, and this one differs in {names}")
    config = dataclasses.replace(model.config, tie_word_embeddings=model.lm_head.weight is model.embed_tokens)
    shape = model_tensors(model, config, folder)
    with new_folder(folder) as scratch:
        write_safetensors(scratch / SINGLE, shape)
        (scratch / "config.json").write_text(json.dumps(config_json(config, model.dtype), indent=2) + "\n", "utf-8")
        if getattr(model.tokenizer, "inner", None) is not None:
            write_tokenizer(model.tokenizer, scratch)
        diagnostics = Diagnostics()
        again = read_config(scratch, diagnostics)  # what load_model would refuse does not get its name
        if again:
            open_checkpoint(scratch, again, diagnostics)
        if diagnostics.problems:
            raise WeightsError(diagnostics.problems[0].replace(str(scratch), str(folder)))
        if again != config:
            raise WeightsError(f"{folder}: config.json cannot say {config}; it would be read as {again}")


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """The files that the tokenizer came from; tokenizer.json alone of one that a GGUF file had."""
    if tokenizer.file.name != TOKENIZER_FILES[0]:
        tokenizer.inner.save(str(folder / TOKENIZER_FILES[0]))
        return
    for name in TOKENIZER_FILES:
        if (tokenizer.file.parent / name).is_file():
            shutil.copyfile(tokenizer.file.parent / name, folder / name)


def config_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json as transformers 4 spells it; version 5 reads that as well, and so do the engines built on either."""
    mistral = config.sliding_window is not None
    ids = list(config.eos_token_ids)
    of_family: dict[str, Any] = (
        {"sliding_window": config.sliding_window}
        if mistral
        else {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    )
    return {
        "architectures": ["MistralForCausalLM" if mistral else "LlamaForCausalLM"],
        "model_type": "mistral" if mistral else "llama",
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": rope_json(config.rope),
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ids[0] if len(ids) == 1 else ids or None,
        **of_family,
    }


def rope_json(rope: Rope) -> dict[str, Any] | None:
    """rope_scaling; null for the plain one."""
    if rope.type == "default":
        return None
    used = [*KINDS[rope.type], *(["original_max_position_embeddings"] if rope.type == "llama3" else [])]
    return {"rope_type": rope.type} | {key: getattr(rope, key) for key in used}


def model_tensors(model: Model, config: ModelConfig, folder: Path) -> dict[str, Array]:
    """Every tensor under its name in the checkpoint, in the model's dtype (a GPU holds halves as float32)."""
    if config.sliding_window is not None and (config.attention_bias or config.mlp_bias):
        window = f"sliding_window {config.sliding_window}"
        raise WeightsError(f"{folder}: {window} with biases: a Mistral has none, and a Llama no window")
    tensors = _parameters(model)
    expected = expected_tensors(config)
    for name, x in tensors.items():
        if name not in expected:
            raise WeightsError(f"{folder}: the model has {name} {list(x.shape)}, its config makes it none")
        if x.shape != expected[name]:
            shape = list(expected[name])
            raise WeightsError(f"{folder}: {name} has shape {list(x.shape)}, the model's config makes it {shape}")
    return {name: converted(to_host(tensors[name]), model.dtype) for name in expected}


def _parameters(model: Model) -> dict[str, Array]:
    """Name in the checkpoint -> array, of all that the model holds."""
    tensors = {EMBED_WEIGHT: model.embed_tokens, "model.norm.weight": model.norm}
    for i, layer in enumerate(model.layers):
        tensors |= {f"model.layers.{i}.{name}.weight": weight for name, weight in layer.norms.items()}
        for name, linear in layer.linears.items():
            tensors |= _linear((i, name), linear)
    if model.lm_head.weight is model.embed_tokens and model.lm_head.bias is None:
        return tensors
    return tensors | _linear(LM_HEAD, model.lm_head)


def _linear(module: Module, linear: Linear) -> dict[str, Array]:
    name = module_name(module)
    return {f"{name}.weight": linear.weight} | ({} if linear.bias is None else {f"{name}.bias": linear.bias})
