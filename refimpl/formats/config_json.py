"""A ModelConfig -> config.json: of a Llama or Mistral as it is, of another family as it was read."""

from typing import Any

from ..config import ModelConfig, Rope
from ..families import FAMILIES
from ..loading.families import CLASSIFIER
from ..loading.rope_scaling import KINDS

# What is said of the files that were read, and not of those that are written.
OF_THE_FILES = ("dtype", "quantization_config", "auto_map")


def config_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The keys of config.json. Of a family beyond Llama those that its config was read from (ModelConfig.keys), which
    then is the text model alone: what has changed since is compared when it is read again (save_model)."""
    if not config.beyond_llama:
        return llama_json(config, dtype)
    family = next(family for family in FAMILIES.values() if family.model_type == config.model_type)
    name = family.architecture.replace("ForCausalLM", CLASSIFIER) if config.labels else family.architecture
    return {key: value for key, value in config.keys.items() if key not in OF_THE_FILES} | {
        "architectures": [name],
        "model_type": family.model_type,
        "torch_dtype": dtype,
        "tie_word_embeddings": config.tie_word_embeddings,
        **ids_json(config),
    }


def ids_json(config: ModelConfig) -> dict[str, Any]:
    """The tokens that begin and end a text."""
    ids = list(config.eos_token_ids)
    return {"bos_token_id": config.bos_token_id, "eos_token_id": ids[0] if len(ids) == 1 else ids or None}


def llama_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json as transformers 4 spells it; version 5 reads that as well, and so do the engines built on either."""
    mistral = config.sliding_window is not None
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
        **ids_json(config),
        **of_family,
    }


def rope_json(rope: Rope) -> dict[str, Any] | None:
    """rope_scaling; null for the plain one."""
    if rope.type == "default":
        return None
    used = [*KINDS[rope.type], *(["original_max_position_embeddings"] if rope.type == "llama3" else [])]
    return {"rope_type": rope.type} | {key: getattr(rope, key) for key in used}
