"""The files that OpenVINO GenAI reads, made of a base and of PEFT folders, for openvino_genai_worker.py."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

REFUSED = ("modules_to_save", "use_dora", "lora_bias", "fan_in_fan_out", "layer_replication", "trainable_token_indices")


def export(base: Path, out: Path) -> None:
    """Write the base in OpenVINO's form, with all of its weights as they are."""
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(base, export=True, compile=False, load_in_8bit=False)
    model.save_pretrained(out)


def adapter_of_zeros(base: Path) -> dict[str, np.ndarray]:
    """Return an adapter of rank 1 on every module of every layer, whose matrices are zero."""
    tensors = {}
    for file in sorted(base.glob("*.safetensors")):
        for name, weight in read_tensors(file).items():
            if re.search(r"\.layers\.\d+\..*_proj\.weight$", name):
                module = f"base_model.model.{name.removesuffix('.weight')}"
                tensors[f"{module}.lora_A.weight"] = np.zeros((1, weight.shape[1]), np.float32)
                tensors[f"{module}.lora_B.weight"] = np.zeros((weight.shape[0], 1), np.float32)
    return tensors


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a file in float32."""
    import safetensors

    with safetensors.safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name).float().numpy() for name in tensors.keys()}  # noqa: SIM118


def scales(folder: Path) -> tuple[float, dict[str, float]]:
    """Return the scale of the first module, and by what that of each module is larger. ValueError for what OpenVINO
    GenAI would not read."""
    peft = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    for key in REFUSED:
        if peft.get(key):
            raise ValueError(f"{folder}: {key} {peft[key]!r}: OpenVINO GenAI reads A and B alone")
    if peft.get("bias", "none") != "none":
        raise ValueError(f"{folder}: bias {peft['bias']!r}: OpenVINO GenAI reads A and B alone")
    each = {}
    for name, array in read_tensors(folder / "adapter_model.safetensors").items():
        module, _, matrix = name.removesuffix(".weight").rpartition(".")
        if matrix == "lora_A":
            alpha = float(pattern(peft.get("alpha_pattern"), module, peft["lora_alpha"]))
            each[module] = alpha / (len(array) ** 0.5 if peft.get("use_rslora") else len(array))
    if not each:
        raise ValueError(f"{folder}: has no lora_A")
    scale = next(iter(each.values()))
    return scale, {module: one / scale for module, one in each.items()}


def pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first key that is the whole name, or its end, as in PEFT."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)


def with_factors(tensors: Mapping[str, np.ndarray], factors: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Return the tensors, each B times the factor of its module."""
    changed = {}
    for name, array in tensors.items():
        module, _, matrix = name.removesuffix(".weight").rpartition(".")
        changed[name] = (array * factors[module]).astype(np.float32) if matrix == "lora_B" else array
    return changed
