"""An Adapter -> the folder that mlx-lm loads with --adapter-path (loading/mlx_adapter.py reads it).

mlx-lm makes LoRA layers of one rank and one scale, a factor, in the modules whose names the config lists. So ranks are
filled up with zeros to the greatest, and where modules have different scales, the rest goes into B.
"""

import json
from pathlib import Path

import numpy as np

from ..adapter import Adapter
from ..config import LAYER_MODULES, LM_HEAD, ModelConfig, Module, module_name
from ..errors import AdapterError
from ..loading.mlx_adapter import MLX_FILE
from ..loading.peft_config import CONFIG_FILE
from .files import new_folder, write_safetensors
from .plain_lora import one_for_all, peft_scales, plain_modules, rounding_note, written

MODULES = (*LAYER_MODULES, LM_HEAD[1])  # LoRA on a tied embedding would be on the head as well


def write_mlx_adapter(
    adapter: Adapter, target: Path, base: ModelConfig | None, dtype: str | None = None, leave_out: bool = False
) -> list[str]:
    """Write the new folder, and return what its owner should know: whatever cannot be read back from it.

    AdapterError, and no folder, for what mlx-lm cannot hold (embed_tokens, a whole layer, a bias) unless it is left
    out."""
    modules, notes = plain_modules(adapter, "mlx-lm", MODULES, leave_out, dora=True)
    if adapter.use_dora and any(adapter.lora[module].magnitude is None for module in modules):
        raise AdapterError("mlx-lm has DoRA in all modules or in none, and this adapter in some")
    scales = peft_scales(adapter)
    scale, factors, more = one_for_all({module: scales[module] for module in modules}, "the scale", "mlx-lm's scale")
    rank = max(adapter.lora[module].A.shape[0] for module in modules)
    tensors = {}
    for module in modules:
        A, B = adapter.lora[module].A, adapter.lora[module].B
        padding = rank - A.shape[0]
        name = module_name(module)
        A, B = np.pad(A, ((0, padding), (0, 0))), np.pad(B, ((0, 0), (0, padding)))
        tensors[f"{name}.lora_a"] = written(A.T, f"A of {name}", dtype)
        tensors[f"{name}.lora_b"] = written(B.T, f"B of {name}", dtype, factors.get(module, 1.0))
        magnitude = adapter.lora[module].magnitude
        if magnitude is not None:
            tensors[f"{name}.m"] = written(magnitude, f"the magnitude of {name}", dtype)
    narrow = [module for module in modules if adapter.lora[module].A.shape[0] < rank]
    if narrow:
        more.append(f"{len(narrow)} modules of a smaller rank are filled up with zeros to rank {rank}")
    config = {
        "fine_tune_type": "dora" if adapter.use_dora else "lora",
        "num_layers": base.num_hidden_layers if base else -1,  # -1: all
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": mlx_keys(modules)},
    }
    with new_folder(target) as scratch:
        write_safetensors(scratch / MLX_FILE, tensors)
        (scratch / CONFIG_FILE).write_text(json.dumps(config, indent=4) + "\n", "utf-8")
    return notes + more + rounding_note(adapter, dtype)


def mlx_keys(modules: list[Module]) -> list[str]:
    """The names of modules as mlx-lm looks for them: below a layer, or whole."""
    names = (module_name(module) for module in sorted(modules))
    return list(dict.fromkeys(name.split(".", 3)[3] if name.startswith("model.layers.") else name for name in names))
