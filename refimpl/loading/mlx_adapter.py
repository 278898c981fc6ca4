"""A LoRA adapter as mlx-lm writes it: adapters.safetensors and adapter_config.json.

    fine_tune_type      lora, or dora
    num_layers          how many of the last layers have LoRA; 0 or less: all
    lora_parameters     rank, scale, keys: the names of modules; without them all, in old versions q_proj and v_proj
    model.layers.3.self_attn.q_proj.lora_a    A transposed, [d_in, rank];  .lora_b: B transposed, [rank, d_out]
    model.layers.3.self_attn.q_proj.m         dora: the magnitude, [d_out], as PEFT's (mlx_lm/tuner/dora.py)
    model.layers.3.mlp.switch_mlp.gate_proj.lora_a    of all experts: A [experts, rank, d_in];  .lora_b: B [experts,
                                              d_out, rank]. Also mlp.experts.gate_proj (gpt-oss); w1, w3 and w2 of a
                                              Mixtral are gate_proj, up_proj and down_proj there

y = W x + scale * (x lora_a) lora_b: the scale is a factor, not alpha / rank. (mlx_lm/tuner/lora.py and utils.py.) It
ignores tensors of modules that the config does not name; here they are refused.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..adapter import PeftConfig
from ..config import EMBED, ModelConfig, Module, module_name
from .adapter_pairs import Scaled, checked_pairs, config_and_parts
from .diagnostics import Diagnostics, shown
from .json_file import LARGEST, Keys, is_integer, is_number, read_json
from .peft_config import CONFIG_FILE
from .peft_tensors import Part, Parts, modules_in
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
    experts = experts_by_name(base) if base else {}
    halves: dict[Module, dict[str, Part]] = {}
    for name, kind in file.stored.items():
        match = NAME.fullmatch(name)
        module = names.get(match[1]) if match else None
        of_all = experts.get(match[1], ()) if match else ()
        if match and of_all and kind in FLOATS and not _ignored(of_all[0], match[1], keys, last, base):
            x = file.tensors[name]
            if match[2] == "m" or x.ndim != 3 or len(x) != len(of_all):
                what = f"has shape {list(x.shape)}; it must have 3 axes, of which the first is {len(of_all)} experts"
                diagnostics.problem(file.path, f"tensor {name} {what}")
                continue
            for one, array in zip(of_all, x, strict=True):
                halves.setdefault(one, {})[PARTS[match[2]]] = Part(name, array)
            continue
        module = of_all[0] if of_all else module
        if base is None and match and len(file.shapes[name]) == 3:
            what = "is of all experts of a layer, and which modules those are, only the base knows: give --model DIR"
            diagnostics.problem(file.path, f"tensor {name} {what}")
        elif match is None or module is None:
            diagnostics.problem(file.path, f"tensor {name} {list(file.shapes[name])} is of no module of the base")
        elif module == EMBED:
            diagnostics.problem(file.path, f"tensor {name}: mlx-lm puts it on a tied head as well; it is not supported")
        elif kind not in FLOATS:
            diagnostics.problem(file.path, f"tensor {name} has dtype {kind}; supported are {', '.join(FLOATS)}")
        elif why := _ignored(module, match[1], keys, last, base):
            diagnostics.problem(file.path, f"tensor {name} is ignored by mlx-lm: {why} ({CONFIG_FILE})")
        else:
            halves.setdefault(module, {})[PARTS[match[2]]] = Part(name, file.tensors[name].T)
    dora = data is not None and data.get("fine_tune_type") == "dora"
    for module, parts in halves.items():
        if dora != ("magnitude" in parts):
            kind = "dora, and it has no m" if dora else "lora, and it has an m"
            diagnostics.problem(file.path, f"module {module_name(module)}: fine_tune_type is {kind}")
    others = [module for module in halves if module_name(module).split(".", 3)[-1] not in DEFAULT_KEYS]
    if keys is None and others:
        where = f"{module_name(others[0])}{f' and {len(others) - 1} more' if len(others) > 1 else ''}"
        diagnostics.warn(config_file, f"lora_parameters has no keys: old versions of mlx-lm ignore {where}")
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


def _parameters(
    file: Path, data: dict[str, Any], diagnostics: Diagnostics
) -> tuple[float, int, tuple[str, ...] | None, int]:
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
    keys = given.get("keys")
    if keys is not None and (not isinstance(keys, list) or not all(isinstance(key, str) for key in keys)):
        diagnostics.problem(file, f"lora_parameters: keys is {shown(keys)}: it must be a list of names")
        keys = []
    last = data.get("num_layers", data.get("lora_layers", 0))
    if not is_integer(last) or last > LARGEST:
        diagnostics.problem(file, f"num_layers is {shown(last)}: it must be a number of layers")
        last = 0
    return float(scale), rank, None if keys is None else tuple(keys), last  # type: ignore[arg-type]


def experts_by_name(base: ModelConfig) -> dict[str, list[Module]]:
    """What mlx-lm calls a module of all experts of a layer -> that module of each of them."""
    if base.moe is None:
        return {}
    moe, parent = base.moe, base.moe.expert.rpartition(".")[0]
    theirs = zip(("gate_proj", "up_proj", "down_proj"), (*moe.gate_up, moe.down), strict=True)
    return {
        f"model.layers.{i}.{stack}.{name}": [(i, f"{moe.expert}.{expert}.{ours}") for expert in range(moe.experts)]
        for name, ours in theirs
        for i in range(base.num_hidden_layers)
        if base.kind(i).sparse
        for stack in (f"{parent}.switch_mlp", moe.expert)
    }


def _ignored(
    module: Module, full_name: str, keys: Collection[str] | None, last: int, base: ModelConfig | None
) -> str | None:
    """Why mlx-lm would make no LoRA layer of this module, which it calls full_name, if it would make none."""
    layer = module[0]
    below = re.sub(r"model\.layers\.\d+\.", "", full_name)
    if keys is not None and below not in keys and full_name not in keys:
        return f"keys are {shown(list(keys))}"
    if base and last > 0 and full_name not in (keys or ()) and 0 <= layer < base.num_hidden_layers - last:
        return f"num_layers is {last}, and the base has {base.num_hidden_layers}"
    return None
