"""A LoRA adapter as mlx-lm writes it: adapters.safetensors and adapter_config.json.

    fine_tune_type      lora, or dora
    num_layers          how many of the last layers have LoRA; 0 or less: all
    lora_parameters     rank, scale, keys: the names of modules, by default q_proj and v_proj
    model.layers.3.self_attn.q_proj.lora_a    A transposed, [d_in, rank];  .lora_b: B transposed, [rank, d_out]
    model.layers.3.self_attn.q_proj.m         dora: the magnitude, [d_out], as PEFT's (mlx_lm/tuner/dora.py)

y = W x + scale * (x lora_a) lora_b: the scale is a factor, not alpha / rank. (mlx_lm/tuner/lora.py and utils.py.) It
ignores tensors of modules that the config does not name; here they are refused.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..adapter import PeftConfig
from ..config import EMBED, LM_HEAD, ModelConfig, Module, module_name
from .adapter_pairs import Scaled, checked_pairs, config_and_parts
from .diagnostics import Diagnostics, shown
from .json_file import LARGEST, Keys, is_integer, is_number, read_json
from .peft_config import CONFIG_FILE
from .peft_tensors import LAYER, Part, Parts, modules_in
from .safetensors_file import FLOATS, open_safetensors

MLX_FILE = "adapters.safetensors"
DEFAULT_KEYS = ("self_attn.q_proj", "self_attn.v_proj")
NAME = re.compile(r"(.+)\.(lora_a|lora_b|m)")
PARTS = {"lora_a": "A", "lora_b": "B", "m": "magnitude"}
KINDS = ("lora", "dora")


def is_mlx(folder: Path) -> bool:
    """Whether a folder has the weights of an mlx-lm adapter, under the name that mlx-lm gives them."""
    return os.path.exists(folder / MLX_FILE)


def read_mlx_adapter(
    folder: Path, base: ModelConfig | None, diagnostics: Diagnostics
) -> tuple[PeftConfig | None, Parts]:
    """PEFT's config and parts of the adapter, with every problem noted."""
    config_file, before = folder / CONFIG_FILE, len(diagnostics.problems)
    if not os.path.exists(config_file):
        diagnostics.problem(folder, f"has {MLX_FILE} but no {CONFIG_FILE}: without it the scale is unknown")
        return None, {}
    data = read_json(config_file, diagnostics)
    scale, rank, keys, last = _parameters(config_file, data, diagnostics) if data else (1.0, 1, (), 0)
    file = open_safetensors(folder / MLX_FILE, diagnostics)
    if file is None or len(diagnostics.problems) > before:
        return None, {}
    names = {module_name(module): module for module in (base.modules() if base else modules_in(file.stored))}
    halves: dict[Module, dict[str, Part]] = {}
    for name, kind in file.stored.items():
        match = NAME.fullmatch(name)
        module = names.get(match[1]) if match else None
        if match is None or module is None:
            diagnostics.problem(file.path, f"tensor {name} {list(file.shapes[name])} is of no module of the base")
        elif module == EMBED:
            diagnostics.problem(file.path, f"tensor {name}: mlx-lm puts it on a tied head as well; it is not supported")
        elif kind not in FLOATS:
            diagnostics.problem(file.path, f"tensor {name} has dtype {kind}; supported are {', '.join(FLOATS)}")
        elif why := _ignored(module, keys, last, base):
            diagnostics.problem(file.path, f"tensor {name} is ignored by mlx-lm: {why} ({CONFIG_FILE})")
        else:
            halves.setdefault(module, {})[PARTS[match[2]]] = Part(name, file.tensors[name].T)
    dora = data is not None and data.get("fine_tune_type") == "dora"
    for module, parts in halves.items():
        if dora != ("magnitude" in parts):
            kind = "dora, and it has no m" if dora else "lora, and it has an m"
            diagnostics.problem(file.path, f"module {module_name(module)}: fine_tune_type is {kind}")
    sound = checked_pairs(file.path, halves, base, diagnostics)
    if len(diagnostics.problems) > before:
        return None, {}
    pairs = {}
    for module in sound:
        A, B = halves[module]["A"], halves[module]["B"]
        pairs[module] = Scaled(A, B, scale * A.array.shape[0], halves[module].get("magnitude"))
        if A.array.shape[0] != rank:
            diagnostics.warn(file.path, f"{A.name} has rank {A.array.shape[0]}, and {CONFIG_FILE} says {rank}")
    return config_and_parts(pairs, base.num_hidden_layers if base else 1 + max(layer for layer, _ in sound))


def _parameters(file: Path, data: dict[str, Any], diagnostics: Diagnostics) -> tuple[float, int, tuple[str, ...], int]:
    """The scale, the rank, the keys and the number of last layers that the config says."""
    kind = data.get("fine_tune_type", "lora")
    if kind not in KINDS:
        diagnostics.problem(file, f"fine_tune_type is {shown(kind)}; lora and dora are supported")
    given = data.get("lora_parameters")
    if not isinstance(given, dict):
        diagnostics.problem(file, f"lora_parameters is {shown(given)}: it must be an object with rank and scale")
        return 1.0, 1, (), 0
    inner = Keys(f"{file}: lora_parameters", given, diagnostics)
    rank, scale = inner.integer("rank"), given.get("scale")
    if not is_number(scale):
        diagnostics.problem(file, f"lora_parameters: scale is {shown(scale)}: it must be a finite number")
        scale = 1.0
    if given.get("alpha") not in (None, rank):
        diagnostics.problem(
            file,
            f"lora_parameters has alpha {shown(given['alpha'])}, by which old versions multiply, and new ones do not",
        )
    keys = given.get("keys") or list(DEFAULT_KEYS)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        diagnostics.problem(file, f"lora_parameters: keys is {shown(keys)}: it must be a list of names")
        keys = []
    last = data.get("num_layers", data.get("lora_layers", 0))
    if not is_integer(last) or last > LARGEST:
        diagnostics.problem(file, f"num_layers is {shown(last)}: it must be a number of layers")
        last = 0
    return float(scale), rank, tuple(keys), last  # type: ignore[arg-type]


def _ignored(module: Module, keys: Collection[str], last: int, base: ModelConfig | None) -> str | None:
    """Why mlx-lm would make no LoRA layer of this module, if it would make none."""
    layer, full_name = module[0], module_name(module)
    below = full_name if module == LM_HEAD else LAYER.sub(lambda match: match[0].split(".", 3)[3], full_name)
    if below not in keys and full_name not in keys:
        return f"keys are {shown(list(keys))}"
    if base and last > 0 and full_name not in keys and 0 <= layer < base.num_hidden_layers - last:
        return f"num_layers is {last}, and the base has {base.num_hidden_layers}"
    return None
