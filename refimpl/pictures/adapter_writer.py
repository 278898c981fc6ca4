"""An Adapter -> the file that it could have been loaded from: diffusers' own form, or kohya's.

diffusers  FOLDER/pytorch_lora_weights.safetensors, with PEFT's LoraConfig in its metadata    load_lora_weights
kohya      FILE.safetensors, with a tensor MODULE.alpha for each module                       sd-scripts, ComfyUI
"""

import json
import math
from pathlib import Path

import numpy as np

from ..adapter import Adapter, lora_alpha_of
from ..arrays import Array, dtype_of
from ..config import module_name
from ..errors import AdapterError
from ..formats.files import PYTORCH, new_file, new_folder, write_safetensors
from ..formats.peft import in_dtype, peft_json
from .adapter_file import LORA_WEIGHTS, METADATA, load_picture_adapter
from .adapter_names import KOHYA
from .config import PictureConfig

PICTURE_FORMATS = ("diffusers", "kohya")


def save_picture_adapter(
    adapter: Adapter, path: str | Path, config: PictureConfig, to: str = "diffusers", dtype: str | None = None
) -> None:
    """Write a new folder (diffusers) or a new .safetensors file (kohya), which load_picture_adapter gives back.

    config is that of its base. Without a dtype every tensor keeps its own. kohya has no rsLoRA: an alpha is written
    whose alpha / rank is the same scale, rounded to float32. AdapterError, and nothing new, for what the format cannot
    hold: a lora_bias in kohya's, a number too large for the dtype."""
    if to not in PICTURE_FORMATS:
        raise AdapterError(f"format {to!r} is not known; choose one of {', '.join(PICTURE_FORMATS)}")
    if dtype is not None:
        dtype_of(dtype)
    path = Path(path)
    tensors = {
        name: in_dtype(path, name, x, dtype)
        for name, x in (diffusers_tensors if to == "diffusers" else kohya_tensors)(adapter).items()
    }
    if to == "diffusers":
        with new_folder(path) as scratch:
            write_safetensors(scratch / LORA_WEIGHTS, tensors, PYTORCH | {METADATA: metadata(adapter)})
            _check(scratch / LORA_WEIGHTS, path / LORA_WEIGHTS, config)
    else:
        with new_file(path) as scratch:
            write_safetensors(scratch, tensors | alphas(adapter), PYTORCH)
            _check(scratch, path, config)


def diffusers_tensors(adapter: Adapter) -> dict[str, Array]:
    """Every tensor under the name that ZImagePipeline.save_lora_weights gives it."""
    tensors: dict[str, Array] = {}
    for module, lora in adapter.lora.items():
        name = f"transformer.{module_name(module)}"
        tensors |= {f"{name}.lora_A.weight": lora.A, f"{name}.lora_B.weight": lora.B}
        if lora.bias is not None:
            tensors[f"{name}.lora_B.bias"] = lora.bias
    return tensors


def metadata(adapter: Adapter) -> str:
    """PEFT's LoraConfig as diffusers puts it into the file, one text."""
    config = {key: value for key, value in peft_json(adapter.config).items() if key != "task_type"}
    return json.dumps({f"transformer.{key}": value for key, value in config.items()}, indent=2, sort_keys=True)


def kohya_tensors(adapter: Adapter) -> dict[str, Array]:
    """A and B of every module under the names of sd-scripts."""
    tensors: dict[str, Array] = {}
    for module, lora in adapter.lora.items():
        if lora.bias is not None:
            raise AdapterError(f"adapter {adapter.name}: {module_name(module)} has a lora_bias, which kohya has not")
        name = kohya_name(module_name(module))
        tensors |= {f"{name}.lora_down.weight": lora.A, f"{name}.lora_up.weight": lora.B}
    return tensors


def alphas(adapter: Adapter) -> dict[str, Array]:
    """MODULE.alpha of every module: with rsLoRA the one whose alpha / rank is alpha / sqrt(rank)."""
    numbers = {}
    for module, lora in adapter.lora.items():
        alpha = lora_alpha_of(adapter.config, module)
        if adapter.config.use_rslora:
            alpha *= math.sqrt(lora.A.shape[0])
        numbers[f"{kohya_name(module_name(module))}.alpha"] = np.array(alpha, np.float32)
    return numbers


def kohya_name(module: str) -> str:
    """layers.0.attention.to_q -> lora_unet_layers_0_attention_to_q"""
    return KOHYA + module.replace(".", "_")


def _check(scratch: Path, target: Path, config: PictureConfig) -> None:
    """What load_picture_adapter would refuse does not get its name."""
    try:
        load_picture_adapter(scratch, config)
    except AdapterError as error:
        raise AdapterError(str(error).replace(str(scratch), str(target))) from None
