"""pytorch_lora_weights.safetensors, or what other trainers write -> an Adapter, honoured in full or refused by name.

The names of its tensors are in adapter_names.py. The scale is the trap. A file says it in one of three ways:

    metadata     lora_adapter_metadata holds PEFT's LoraConfig: lora_alpha, rank, patterns, rsLoRA     diffusers
    alpha        a tensor MODULE.alpha for each module: alpha / rank                                  kohya, ComfyUI
    nothing      the scale is 1, as if every alpha were the rank                                      ai-toolkit

A file that says it twice is refused: diffusers multiplies both, others take one of them.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..adapter import Adapter, LoraTensors, PeftConfig, pattern_value
from ..arrays import Array
from ..errors import AdapterError
from ..loading.adapter_folder import read_only_copy
from ..loading.conversion import all_finite
from ..loading.diagnostics import Diagnostics, one_line, shown
from ..loading.embedded import STYLES
from ..loading.json_file import parse_json
from ..loading.peft_config import parse_peft_config, selects
from ..loading.safetensors_file import FLOATS, SafetensorsFile, open_safetensors
from .adapter_names import modules_by_name, split_name, what_else
from .config import PictureConfig, module_of

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # diffusers/loaders/lora_base.py, LORA_ADAPTER_METADATA_KEY

Parts = dict[str, dict[str, Array]]  # module as the file names it -> part -> tensor


def load_picture_adapter(path: str | Path, config: PictureConfig, name: str | None = None) -> Adapter:
    """A LoRA for a base of this config: a folder that diffusers has written, a .safetensors file, or one of the
    embedded styles by its name (ink, night, blueprint, watercolour).

    AdapterError, one line, if anything in it would not be honoured: nothing is loaded then. The arrays are read-only
    copies in the file's own type. alpha and the patterns are in `.config`, not applied."""
    if not isinstance(config, PictureConfig):
        raise AdapterError(
            f"load_picture_adapter needs the base's config, as model.config; not {type(config).__name__}"
        )
    file, diagnostics = adapter_file(path), Diagnostics()
    adapter = read_picture_adapter(file, config, name or name_of(file), diagnostics)
    diagnostics.raise_first(AdapterError)
    assert adapter is not None  # None comes with a problem
    return adapter


def adapter_file(path: str | Path) -> Path:
    """The file that an adapter's path means. AdapterError for a folder that has none."""
    path = Path(path) if os.path.exists(path) else Path(STYLES.get(str(path), path))
    if not os.path.exists(path):
        raise AdapterError(one_line(f"{path}: is not there; the embedded styles are {', '.join(STYLES)}"))
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    if path / LORA_WEIGHTS in files or len(files) == 1:
        return path / LORA_WEIGHTS if path / LORA_WEIGHTS in files else files[0]
    others = f"; give one of its files: {', '.join(file.name for file in files[:5])}" if files else ""
    raise AdapterError(one_line(f"{path}: has no {LORA_WEIGHTS}{others}"))


def name_of(file: Path) -> str:
    """What an adapter is called: its file, or the folder of one that is called as all are."""
    return os.path.basename(os.path.dirname(os.path.abspath(file))) if file.name == LORA_WEIGHTS else file.stem


def read_picture_adapter(file: Path, base: PictureConfig, name: str, diagnostics: Diagnostics) -> Adapter | None:
    """As load_picture_adapter, with every problem noted."""
    opened = open_safetensors(file, diagnostics)
    if opened is None:
        return None
    parts = sort_parts(opened, base, diagnostics)
    stated = read_metadata(opened, diagnostics)
    if not opened.stored:
        diagnostics.problem(file, "holds no tensor")
    if diagnostics.problems:
        return None
    lora = tensors_of(parts, base, file, diagnostics)
    config = stated if stated is not None else config_of(lora, alphas_of(parts, base), file, diagnostics)
    if config is not None and stated is not None:
        check_stated(lora, parts, stated, file, diagnostics)
    if config is None or diagnostics.problems:
        return None
    return Adapter(name, config, {module_of(module): tensors for module, tensors in lora.items()})


def sort_parts(file: SafetensorsFile, base: PictureConfig, diagnostics: Diagnostics) -> Parts:
    """Every tensor under its module and part, with everything noted that the base has no place for."""
    names, parts = modules_by_name(base), Parts()
    for tensor in file.stored:
        split = split_name(tensor)
        if split is None or split[0] not in names:
            diagnostics.problem(
                file.path, f"tensor {tensor} {list(file.shapes[tensor])} is not supported: {what_else(tensor)}"
            )
        elif file.stored[tensor] not in FLOATS:
            diagnostics.problem(
                file.path, f"tensor {tensor} has dtype {file.stored[tensor]}; supported are {', '.join(FLOATS)}"
            )
        elif not all_finite(file.tensors[tensor]):
            diagnostics.problem(file.path, f"tensor {tensor} holds NaN or inf")
        elif split[1] in parts.setdefault(split[0], {}):
            diagnostics.problem(file.path, f"tensor {tensor}: {split[0]} has a second one of this part")
        else:
            parts[split[0]][split[1]] = file.tensors[tensor]
    return parts


def tensors_of(parts: Parts, base: PictureConfig, file: Path, diagnostics: Diagnostics) -> dict[str, LoraTensors]:
    """Module of the base -> its tensors, out of the map. B of a fused q, k, v is cut in three; A is for all of them."""
    names, lora = modules_by_name(base), dict[str, LoraTensors]()
    for name, tensors in parts.items():
        modules = names[name]
        if missing := [f"lora_{half}" for half in "AB" if half not in tensors]:
            diagnostics.problem(file, f"module {name}: {' and '.join(missing)} is missing")
            continue
        A, B, bias = tensors["A"], tensors["B"], tensors.get("bias")
        d_out = sum(base.shape(module_of(module))[0] for module in modules)
        d_in = base.shape(module_of(modules[0]))[1]
        rank = A.shape[0] if A.ndim else 0
        expected = {"A": (A, [rank or 1, d_in]), "B": (B, [d_out, rank]), "bias": (bias, [d_out])}
        wrong = [
            f"module {name}: {part} has shape {list(x.shape)}, the base makes it {shape}"
            for part, (x, shape) in expected.items()
            if x is not None and list(x.shape) != shape
        ]
        if wrong:
            diagnostics.problem(file, wrong[0])
            continue
        B_parts = np.split(B, len(modules))
        biases = [None] * len(modules) if bias is None else np.split(bias, len(modules))
        shared = read_only_copy(A)
        for module, B_part, bias_part in zip(modules, B_parts, biases, strict=True):
            if module in lora:
                diagnostics.problem(file, f"module {name} is there twice: alone, and as a part of another")
            bias_copy = None if bias_part is None else read_only_copy(bias_part)
            lora[module] = LoraTensors(shared, read_only_copy(B_part, order="F"), bias_copy)
    return lora


def alphas_of(parts: Parts, base: PictureConfig) -> dict[str, Array]:
    """Module of the base -> its alpha tensor, where it has one."""
    names = modules_by_name(base)
    return {module: x["alpha"] for name, x in parts.items() if "alpha" in x for module in names[name]}


def config_of(
    lora: Mapping[str, LoraTensors], alphas: Mapping[str, Array], file: Path, diagnostics: Diagnostics
) -> PeftConfig | None:
    """The config that says what alpha tensors say; without one, alpha is the rank of its module: scale 1."""
    if wrong := [module for module, alpha in alphas.items() if alpha.size != 1]:
        diagnostics.problem(file, f"{wrong[0]}.alpha has shape {list(alphas[wrong[0]].shape)}; it must be one number")
    if not lora or diagnostics.problems:
        return None
    ranks = {module: tensors.A.shape[0] for module, tensors in lora.items()}
    scales = {
        module: float(alphas[module].reshape(-1)[0]) if module in alphas else float(ranks[module]) for module in lora
    }
    r, alpha = most_common(list(ranks.values())), most_common(list(scales.values()))
    return PeftConfig(
        r=r,
        lora_alpha=alpha,
        rank_pattern={module: rank for module, rank in ranks.items() if rank != r},
        alpha_pattern={module: other for module, other in scales.items() if other != alpha},
        target_modules=tuple(lora),
        lora_bias=any(tensors.bias is not None for tensors in lora.values()),
    )


def most_common(values: list[Any]) -> Any:
    """The value that is there most often; of several, the first."""
    return max(values, key=values.count)


def read_metadata(file: SafetensorsFile, diagnostics: Diagnostics) -> PeftConfig | None:
    """The LoraConfig in the file's metadata, or None where there is none, or with every problem noted."""
    if METADATA not in file.metadata:
        return None
    try:
        data = parse_json(file.metadata[METADATA].encode())
    except (ValueError, RecursionError) as error:
        diagnostics.problem(file.path, f"{METADATA} is not valid JSON ({error})")
        return None
    if not isinstance(data, dict):
        diagnostics.problem(file.path, f"{METADATA} is {shown(data)}, not a JSON object")
        return None
    if others := [key for key in data if "." in key and not key.startswith("transformer.")]:
        diagnostics.problem(file.path, f"{METADATA} has {others[0]}: only an adapter of the transformer is supported")
        return None
    plain = {key.removeprefix("transformer."): value for key, value in data.items()}
    where = Path(f"{file.path}: {METADATA}")
    config = parse_peft_config(where, {"peft_type": "LORA", **plain}, diagnostics)
    if config is None:
        return None
    of_text = ("use_dora", "modules_to_save", "layer_replication", "init_lora_weights", "alora_invocation_tokens")
    given = [key for key in of_text if getattr(config, key)] + (["bias"] if config.bias != "none" else [])
    for key in given:
        diagnostics.problem(where, f"{key} is {shown(plain[key])}, which is not supported for pictures")
    return config


def check_stated(
    lora: Mapping[str, LoraTensors], parts: Parts, config: PeftConfig, file: Path, diagnostics: Diagnostics
) -> None:
    """What the metadata says and what the tensors are must agree: PEFT goes by the first, and fills in the second."""
    if doubled := [name for name, tensors in parts.items() if "alpha" in tensors]:
        diagnostics.problem(
            file, f"{doubled[0]}.alpha and {METADATA} both say a scale: diffusers multiplies them, others take one"
        )
    for module, tensors in lora.items():
        rank = pattern_value(config.rank_pattern, module, config.r)
        if rank != tensors.A.shape[0]:
            diagnostics.problem(file, f"module {module}: {METADATA} makes its rank {rank}, A has {tensors.A.shape[0]}")
        if config.lora_bias != (tensors.bias is not None):
            says = "true, but lora_B.bias is not there" if config.lora_bias else "false, but lora_B.bias is there"
            diagnostics.problem(file, f"module {module}: lora_bias is {says}")
        if not selects(config, module):
            diagnostics.problem(file, f"module {module}: target_modules of {METADATA} does not select it")
