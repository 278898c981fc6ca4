"""An Adapter -> the PEFT folder that it could have been loaded from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapter import Adapter, PeftConfig
from ..arrays import Array, dtype_of
from ..config import EMBED, ModelConfig, Module, module_name
from ..errors import AdapterError
from ..loading.adapter_folder import WEIGHTS_FILE, read_parts
from ..loading.conversion import all_finite, converted
from ..loading.diagnostics import Diagnostics
from ..loading.peft_config import CONFIG_FILE, is_saved
from ..loading.peft_tensors import PREFIX
from .files import new_folder, write_safetensors
from .peft_experts import of_experts, with_parameters


def save_adapter(
    adapter: Adapter,
    folder: str | Path,
    dtype: str | None = None,
    base: str | None = None,
    config: ModelConfig | None = None,
) -> None:
    """Write a new PEFT folder: adapter_config.json and adapter_model.safetensors.

    Without a dtype every tensor keeps its own, and `load_adapter` gives back the same bits and the same config. With
    one, all are rounded to it (to nearest, ties to even). AdapterError, and no folder, if the adapter contradicts
    itself (a rank that its config denies), or holds a number that the dtype cannot.

    base: the model that it belongs to, a folder or a name on the Hub. It is PEFT's base_model_name_or_path, by which
    AutoPeftModelForCausalLM loads both at once. config: of that base, which an adapter on experts needs: it is written
    as PEFT has it, one pair for all experts of a layer (peft_experts.py)."""
    if dtype is not None:
        dtype_of(dtype)
    folder = Path(folder)
    stacked: dict[str, Array] = {}
    if (names := of_experts(adapter)) or adapter.config.target_parameters or (config and config.moe):
        if config is None:
            where = f"LoRA on {names[0]}" if names else f"target_parameters {list(adapter.config.target_parameters)}"
            lacking = "which experts and parameters there are, only the base knows: give its config (--model DIR)"
            raise AdapterError(f"{folder}: adapter {adapter.name} has {where}; {lacking}")
        adapter, stacked = with_parameters(adapter, config)
    tensors = {name: in_dtype(folder, name, x, dtype) for name, x in (peft_tensors(adapter) | stacked).items()}
    with new_folder(folder) as scratch:
        write_safetensors(scratch / WEIGHTS_FILE, tensors)
        (scratch / CONFIG_FILE).write_text(json.dumps(peft_json(adapter.config, base), indent=2) + "\n", "utf-8")
        diagnostics = Diagnostics()
        read_parts(scratch, None, diagnostics)  # what load_adapter would refuse does not get its name
        if diagnostics.problems:
            raise AdapterError(diagnostics.problems[0].replace(str(scratch), str(folder)))


def peft_json(config: PeftConfig, base: str | None = None) -> dict[str, Any]:
    """adapter_config.json, of an adapter for this base. What is null is what PEFT takes as not given."""
    later: dict[str, Any] = {  # keys that only what uses them needs: older versions of PEFT do not know them
        "use_dora": config.use_dora,
        "trainable_token_indices": {name: list(ids) for name, ids in config.trainable_token_indices.items()},
        "ensure_weight_tying": config.ensure_weight_tying,
        "layer_replication": [list(run) for run in config.layer_replication],
        "alora_invocation_tokens": list(config.alora_invocation_tokens),
        "target_parameters": list(config.target_parameters),
        "peft_version": config.peft_version,
    }
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if "score" in config.modules_to_save else "CAUSAL_LM",
        "base_model_name_or_path": base or config.base_model_name_or_path,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": _plain(config.lora_alpha),
        "use_rslora": config.use_rslora,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": {name: _plain(alpha) for name, alpha in config.alpha_pattern.items()},
        "target_modules": _names(config.target_modules),
        "exclude_modules": _names(config.exclude_modules) or None,
        "layers_to_transform": None if config.layers_to_transform is None else list(config.layers_to_transform),
        "layers_pattern": list(config.layers_pattern) or None,
        "modules_to_save": list(config.modules_to_save) or None,
        "bias": config.bias,
        "lora_bias": config.lora_bias,
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": config.init_lora_weights or True,
        **{key: value for key, value in later.items() if value},
    }


def peft_tensors(adapter: Adapter) -> dict[str, Array]:
    """Every tensor under the name that PEFT gives it (peft/utils/save_and_load.py, get_peft_model_state_dict)."""
    tensors: dict[str, Array] = {}
    for module, lora in adapter.lora.items():
        # An embedding's A and B are bare parameters, those of a linear layer are layers of their own.
        A, B = ("lora_embedding_A", "lora_embedding_B") if module == EMBED else ("lora_A.weight", "lora_B.weight")
        tensors[_name(module, A)], tensors[_name(module, B)] = lora.A, lora.B
        if lora.bias is not None:
            tensors[_name(module, "lora_B.bias")] = lora.bias
        if lora.magnitude is not None:
            tensors[_name(module, "lora_magnitude_vector")] = lora.magnitude
    for module, tokens in adapter.tokens.items():
        if module == EMBED or tokens is not adapter.tokens.get(EMBED):  # tied tables share one tensor
            tensors[_name(module, "token_adapter.trainable_tokens_delta")] = tokens.rows
    for module, weight in adapter.replaced.items():
        inner = "token_adapter.base_layer.weight" if module in adapter.tokens else None
        tensors[_name(module, inner or _within(adapter.config, adapter.lora, module, "weight"))] = weight
    for module, bias in adapter.biases.items():
        tensors[_name(module, _within(adapter.config, adapter.lora, module, "bias"))] = bias
    return tensors


def _within(config: PeftConfig, lora: Mapping[Module, Any], module: Module, part: str) -> str:
    """A parameter of the base's own layer, which PEFT calls base_layer where it has put a LoRA around it."""
    return f"base_layer.{part}" if module in lora and not is_saved(config, module_name(module)) else part


def _name(module: Module, part: str) -> str:
    return f"{PREFIX}{module_name(module)}.{part}"


def _plain(x: float) -> int | float:
    """32.0 -> 32, as people write it; of large numbers not every digit."""
    return int(x) if float(x).is_integer() and abs(x) < 2**53 else float(x)


def _names(names: tuple[str, ...] | str) -> list[str] | str:
    return names if isinstance(names, str) else list(names)


def in_dtype(folder: Path, name: str, x: Array, dtype: str | None) -> Array:
    """Return a tensor rounded to the dtype; itself without one. AdapterError for numbers too large for it."""
    if dtype is None or x.dtype.name == dtype:
        return x
    result = converted(x, dtype)
    if not all_finite(result):
        raise AdapterError(f"{folder}: tensor {name} ({x.dtype.name}) has values too large for {dtype}")
    return result
