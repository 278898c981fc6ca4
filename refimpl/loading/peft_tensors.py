"""adapter_model.safetensors: which module and which part of it each tensor is, and whether all of it fits."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..adapter import PeftConfig, pattern_value
from ..arrays import Array
from ..config import EMBED, LAYER_INPUTS, LM_HEAD, PARENTS, SCORE, ModelConfig, Module, module_name
from .conversion import all_finite
from .diagnostics import Diagnostics
from .foreign_names import PREFIX, why_unplaced
from .peft_config import CONFIG_FILE, is_saved
from .peft_parameters import UNPLACED, packed_names, selects_module, unplaced
from .safetensors_file import FLOATS, SafetensorsFile
from .wrapped_names import text_name

# The parts of a module that PEFT saves, by the end of the tensor's name.
PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "lora_bias",  # lora_bias
    "lora_magnitude_vector": "magnitude",  # use_dora: a layer of PEFT's, saved without .weight and read with it, too
    "lora_magnitude_vector.weight": "magnitude",
    "lora_embedding_A": "A",  # PEFT keeps these two as bare parameters, without .weight
    "lora_embedding_B": "B",
    "lora_embedding_A.weight": "A",
    "lora_embedding_B.weight": "B",
    "token_adapter.trainable_tokens_delta": "tokens",  # trainable_token_indices: new rows, whatever the name says
    "weight": "saved",  # modules_to_save, or save_embedding_layers after the vocabulary has grown
    "base_layer.weight": "copy",  # save_embedding_layers: PEFT saves the base of a targeted embedding with it
    "bias": "bias",  # bias="all"; also "lora_only" before PEFT 0.6
    "base_layer.bias": "bias",
    # What save_embedding_layers="auto" writes beside them where the vocabulary was resized: the module's whole state.
    "modules_to_save.weight": "saved again",
    "original_module.weight": "untrained",
    "token_adapter.base_layer.weight": "copy",
}
TABLE_PARTS = ("weight", "base_layer.weight", "modules_to_save.weight", "original_module.weight")
# Buffers of a training, which PEFT saves with the rest: VeLoRA projects gradients with it.
OF_TRAINING = ".lora_velora_embed"
NAME = re.compile(rf"{re.escape(PREFIX)}(.+?)\.({'|'.join(map(re.escape, PARTS))})")
BELOW_LAYER = "|".join(f"{parent}.{name}".lstrip(".") for name, parent in PARENTS.items())
LAYER = re.compile(rf"model\.layers\.(\d+)\.(?:{BELOW_LAYER})\b")


@dataclass
class Part:
    """One tensor, and its name for messages."""

    name: str
    array: Array


Parts = dict[Module, dict[str, Part]]


def sort_parts(file: SafetensorsFile, base: ModelConfig | None, diagnostics: Diagnostics) -> Parts:
    """Every tensor under its module and part. Without a base, layers and widths are taken as the file has them."""
    parts: Parts = {}
    names = {module_name(module): module for module in (base.modules() if base else modules_in(file.stored))}
    names |= {module_name(SCORE): SCORE} | (packed_names(base) if base else {})
    for name in file.stored:
        if name.endswith(OF_TRAINING):
            continue
        match = NAME.fullmatch(name)
        plain = (text_name(match.group(1)) or "") if match else ""
        module = names.get(plain) or (None if base else unplaced(plain))
        if not match or module is None or not _belongs(module, match.group(2)):
            diagnostics.problem(
                file.path, f"tensor {name} {list(file.shapes[name])} is not supported: {why_unplaced(name, base)}"
            )
            continue
        part = PARTS[match.group(2)]
        if part in parts.get(module, {}):
            diagnostics.problem(file.path, f"tensor {name} is there a second time, as {parts[module][part].name}")
        elif file.stored[name] not in FLOATS:
            diagnostics.problem(
                file.path, f"tensor {name} has dtype {file.stored[name]}; supported are {', '.join(FLOATS)}"
            )
        else:
            parts.setdefault(module, {})[part] = Part(name, file.tensors[name])
            if not all_finite(file.tensors[name]):
                diagnostics.problem(file.path, f"tensor {name} holds NaN or inf")
    _leave_copies_out(parts, file.path, diagnostics)
    return parts


def _leave_copies_out(parts: Parts, file: Path, diagnostics: Diagnostics) -> None:
    """Take out the table that modules_to_save replaces, and its second name, where the first one is there and equal."""
    for module in (EMBED, LM_HEAD):
        tensors = parts.get(module, {})
        for kind in ("saved again", "untrained"):
            if (part := tensors.pop(kind, None)) is None:
                continue
            if "saved" not in tensors:
                why = why_unplaced(part.name, None)
                diagnostics.problem(file, f"tensor {part.name} {list(part.array.shape)} is not supported: {why}")
            elif kind == "saved again" and not np.array_equal(part.array, tensors["saved"].array):
                diagnostics.problem(file, f"tensors {part.name} and {tensors['saved'].name} differ: which was trained?")
        if module in parts and not tensors:
            del parts[module]


def modules_in(tensors: Iterable[str]) -> list[Module]:
    """Without a base: every module of any family, in as many layers as the file names."""
    matches = (LAYER.match(text_name(name.removeprefix(PREFIX)) or "") for name in tensors)
    layers = {int(match.group(1)) for match in matches if match and len(match.group(1)) < 5}
    return [EMBED, LAYER_INPUTS, *((i, module) for i in sorted(layers) for module in PARENTS), LM_HEAD]


def _belongs(module: Module, ending: str) -> bool:
    """Whether a part of this name can be saved for this module."""
    embedding = ending.startswith("lora_embedding")
    if module == EMBED:
        return embedding or ending.startswith(("lora_magnitude", "token_")) or ending in TABLE_PARTS
    if module == LM_HEAD:
        return not embedding and not ending.endswith("layer.bias") and ending != "bias"
    if module == SCORE:
        return ending == "weight"
    return not embedding and not ending.startswith("token_") and ending not in TABLE_PARTS


def full_weights_of(parts: Parts, config: PeftConfig, base: ModelConfig | None) -> dict[Module, Part]:
    """The whole weights that the adapter brings along for embed_tokens and lm_head.

    modules_to_save is a layer of its own. What save_embedding_layers writes is loaded into the base's own parameter,
    and where embeddings are tied that is one for both (peft/utils/save_and_load.py, set_peft_model_state_dict).
    """
    kinds = [(module, kind) for module in (EMBED, LM_HEAD) for kind in ("saved", "copy")]
    full_weights = {module: parts[module][kind] for module, kind in kinds if kind in parts.get(module, {})}
    if base and base.tie_word_embeddings and len(full_weights) == 1:
        module, part = next(iter(full_weights.items()))
        if not is_saved(config, module_name(module)):
            full_weights = {EMBED: part, LM_HEAD: part}
    return full_weights


def check_lora(
    parts: Parts, config: PeftConfig, base: ModelConfig | None, file: Path, diagnostics: Diagnostics
) -> None:
    """Every module's A and B are both there, selected, of the config's rank and the base's widths."""
    full_weights = full_weights_of(parts, config, base)
    for module, tensors in parts.items():
        if base is None and UNPLACED.fullmatch(module[1]):
            continue  # of all experts in one: peft_experts.py has checked it
        if tensors.keys() & {"A", "B", "lora_bias", "magnitude"}:
            rows = (
                full_weights[module].array.shape[0]
                if module in full_weights and full_weights[module].array.ndim
                else None
            )
            selected = selects_module(config, module, base)
            _check_module(module, tensors, config, _shape(module, base, rows), selected, file, diagnostics)


Shape = tuple[int, int]


def _shape(module: Module, base: ModelConfig | None, rows: int | None) -> Shape | None:
    """(d_out, d_in) of the module that the LoRA is added to. The embedding is looked up: d_in is its vocabulary."""
    if base is None:
        return None
    d_out, d_in = base.shape(module)
    if module == EMBED:
        return d_in, rows or d_out
    return rows or d_out, d_in


def _check_module(
    module: Module,
    tensors: Mapping[str, Part],
    config: PeftConfig,
    shape: Shape | None,
    selected: bool,
    file: Path,
    diagnostics: Diagnostics,
) -> None:
    full_name = module_name(module)
    missing = [f"lora_{half}" for half in "AB" if half not in tensors]
    if missing:
        present = ", ".join(part.name for part in tensors.values())
        diagnostics.problem(file, f"module {full_name}: {' and '.join(missing)} is missing (there is {present})")
        return
    rank = pattern_value(config.rank_pattern, full_name, config.r)
    A, B = tensors["A"], tensors["B"]
    d_out, d_in = shape or (_axis(B.array, 0), _axis(A.array, 1))
    checked = [(A, [rank, d_in]), (B, [d_out, rank])]
    checked += [(tensors[part], [d_out]) for part in ("lora_bias", "magnitude") if part in tensors]
    for part, expected in checked:
        if list(part.array.shape) != expected:
            makes = f"{CONFIG_FILE} (rank {rank}) and the base make it {expected}"
            diagnostics.problem(file, f"tensor {part.name} has shape {list(part.array.shape)}, {makes}")
    if config.lora_bias != ("lora_bias" in tensors):
        says = "true, but lora_B.bias is not there" if config.lora_bias else "false, but lora_B.bias is there"
        diagnostics.problem(file, f"module {full_name}: lora_bias is {says}")
    if config.use_dora != ("magnitude" in tensors):
        magnitude = "lora_magnitude_vector is " + ("there" if "magnitude" in tensors else "not there")
        says = "true" if config.use_dora else "false"
        diagnostics.problem(file, f"module {full_name}: use_dora is {says}, but {magnitude}")
    if not selected:
        why = "modules_to_save replaces it" if is_saved(config, full_name) else "target_modules does not select it"
        diagnostics.problem(file, f"tensor {A.name} is not for use: {why} ({CONFIG_FILE})")


def _axis(x: Array, axis: int) -> int:
    return x.shape[axis] if x.ndim > axis else -1
