"""A PEFT folder -> an Adapter, honoured in full or refused by name; an mlx-lm folder and a GGUF file likewise
(mlx_adapter.py, gguf_adapter.py). What a PEFT folder holds:

adapter_config.json          r, lora_alpha, use_rslora, target_modules, rank_pattern, alpha_pattern, ...
adapter_model.safetensors    base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight     [r, d_in]
                             base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight     [d_out, r]
                             base_model.model.model.embed_tokens.lora_embedding_A               [r, vocab]
                             base_model.model.lm_head.weight     a whole layer, of modules_to_save
"""

import os
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ..adapter import Adapter, LoraTensors, PeftConfig
from ..arrays import Array
from ..config import SCORE, ModelConfig
from ..errors import AdapterError, AdapterWarning
from ..weights import Model
from . import tinker_adapter, torchtune_adapter
from .adapter_file import open_adapter
from .adapter_place import WEIGHTS_FILE as WEIGHTS_FILE
from .adapter_place import not_an_adapter
from .base_names import check_base_name
from .blocks import written_out
from .changed_base import NEEDS_BASE, with_base_restored
from .diagnostics import Diagnostics
from .embedded import VOICES
from .files_beside import check_files_beside, check_new_rows
from .foreign_names import common_cause, wrapper_note
from .gguf_adapter import read_gguf_adapter
from .gguf_file import is_gguf
from .json_file import read_json
from .mlx_adapter import is_mlx, read_mlx_adapter
from .nemo_adapter import read_nemo_adapter
from .nemo_file import find_nemo, is_nemo
from .peft_config import CONFIG_FILE, read_peft_config
from .peft_experts import expand_experts
from .peft_keys import is_vera
from .peft_parameters import UNPLACED
from .peft_selection import check_parameters, check_selected, check_vocabulary, check_whole, is_as_deep
from .peft_tensors import LAYER, Parts, check_lora, full_weights_of, sort_parts
from .peft_tokens import check_tokens, token_rows
from .safetensors_file import SafetensorsFile
from .table_copies import without_copies
from .tinker_adapter import is_tinker, with_trained_targets
from .torchtune_adapter import is_torchtune, with_pefts_targets
from .vera_adapter import sort_vera
from .vera_projection import drawn_projection


def load_adapter(path: str | Path, base: ModelConfig | Model, name: str | None = None) -> Adapter:
    """A PEFT LoRA folder for this base, an mlx-lm folder, a GGUF file; or one of the embedded voices, by its name.

    base: a model, or its config: that is enough for all adapters but those that took a part out of the base when they
    were trained (PiSSA, OLoRA: changed_base.py), and leaves copies of its tables in them (table_copies.py).

    AdapterError, one line, if anything in it would not be honoured: nothing is loaded then. AdapterWarning, once each,
    for what is honoured but odd. The arrays are read-only copies in the file's own type: they do not change if the file
    does, so that a digest of them stays true. Raw tensors: alpha and the patterns are in `.config`, not applied.
    """
    model = base if isinstance(base, Model) else None
    config = base.config if isinstance(base, Model) else base
    if not isinstance(config, ModelConfig):
        raise AdapterError(f"load_adapter needs the base: a model, or its config; not {type(config).__name__}")
    folder, diagnostics = adapter_folder(path), Diagnostics()
    adapter = read_adapter(folder, config, name or os.path.basename(os.path.abspath(folder)), diagnostics, model)
    diagnostics.raise_first(AdapterError, folder, " --model BASE")
    assert adapter is not None  # None comes with a problem
    for warning in diagnostics.warnings:
        warnings.warn(warning, AdapterWarning, stacklevel=2)
    return adapter


def adapter_folder(path: str | Path) -> Path:
    """The folder that an adapter's path means: a voice of the embedded model, unless there is a folder of that name."""
    if not os.path.exists(path):  # os.path, not Path: a name that is too long is no file, and no exception
        return Path(VOICES.get(str(path), path))
    return Path(path)


def needs_weights(path: str | Path) -> bool:
    """Whether an adapter can only be read with its base's weights, as those of PiSSA and OLoRA (changed_base.py)."""
    folder = adapter_folder(path)
    config = read_peft_config(folder, Diagnostics()) if os.path.isfile(folder / CONFIG_FILE) else None
    return config is not None and config.init_lora_weights is not None


def read_adapter(
    folder: Path, base: ModelConfig | None, name: str, diagnostics: Diagnostics, model: Model | None = None
) -> Adapter | None:
    """As load_adapter, with every problem and warning noted; without a base, its shapes and layers are not compared."""
    config, parts = read_parts(folder, base, diagnostics)
    if base is None and any(UNPLACED.fullmatch(name) for _, name in parts):
        diagnostics.problem(
            folder, "has LoRA on all experts in one, and how it lies, only the base knows: give --model DIR"
        )
    if config is None or diagnostics.problems:
        return None
    adapter = _adapter(name, config, parts, base)
    if model is not None:
        adapter = without_copies(adapter, model)
    if config.init_lora_weights is None:
        return adapter
    if model is None:
        diagnostics.problem(folder / CONFIG_FILE, f"init_lora_weights is {config.init_lora_weights!r}: {NEEDS_BASE}")
        return None
    return with_base_restored(adapter, model)


def read_parts(folder: Path, base: ModelConfig | None, diagnostics: Diagnostics) -> tuple[PeftConfig | None, Parts]:
    """The config and the tensors of a folder, still in the memory map, with every problem and warning noted.

    Of an mlx-lm folder or a GGUF file, what PEFT's would be for the same numbers."""
    if is_gguf(folder):
        return _warned(folder, *read_gguf_adapter(folder, base, diagnostics), diagnostics)
    if is_mlx(folder):
        return _warned(folder, *read_mlx_adapter(folder, base, diagnostics), diagnostics)
    if is_nemo(folder):
        return _warned(folder, *read_nemo_adapter(folder, base, diagnostics), diagnostics)
    if problem := find_nemo(folder) or not_an_adapter(folder):
        diagnostics.problem(folder, problem)
        return None, {}
    config = read_peft_config(folder, diagnostics)
    check_new_rows(folder, diagnostics)
    after_config = len(diagnostics.problems)
    if config and base and not is_as_deep(config, base, folder / CONFIG_FILE, diagnostics):
        return None, {}
    file = open_adapter(folder, diagnostics)
    if file and is_torchtune(file):
        file, config = torchtune_adapter.in_pefts_names(file, base, diagnostics), config and with_pefts_targets(config)
    elif file and is_tinker(file):
        file, config = tinker_adapter.in_pefts_names(file), config and with_trained_targets(config, file)
    opened = len(diagnostics.problems)
    data = read_json(folder / CONFIG_FILE, Diagnostics()) or {}  # once more, for what no PeftConfig holds
    if file and config and is_vera(data):
        parts = sort_vera(file, base, partial(drawn_projection, data, config, base, folder, diagnostics), diagnostics)
    else:
        parts = sort_parts(file, base, diagnostics) if file else {}
    sorted_out = len(diagnostics.problems)
    if config and file:
        parts = written_out(parts, data, base, folder, diagnostics)
        config, parts = expand_experts(parts, config, base, file.path, diagnostics)
    if config and file and len(diagnostics.problems) == sorted_out:
        check_lora(parts, config, base, file.path, diagnostics)
        check_whole(parts, config, base, file.path, diagnostics)
        check_tokens(parts, config, base, file.path, diagnostics)
        if base:
            check_vocabulary(parts, config, base, file.path, diagnostics)
            check_selected(parts, config, base, folder, diagnostics, all_sorted=sorted_out == opened)
        else:
            check_parameters(parts, config, file.path, diagnostics)
        check_base_name(config, data, base, folder / CONFIG_FILE, diagnostics)
        _warned(file.path, config, parts, diagnostics)
    if file:
        if note := wrapper_note(file.stored, base):
            diagnostics.warn(file.path, note)
        if len(diagnostics.problems) > after_config + 2 and (cause := _cause(file, parts, base, diagnostics)):
            diagnostics.problems.insert(after_config, f"{file.path}: {cause}")
    check_files_beside(folder, parts, base, diagnostics)
    return config, parts


def _cause(file: SafetensorsFile, parts: Parts, base: ModelConfig | None, diagnostics: Diagnostics) -> str | None:
    """What is behind many problems at once: names in another form, or another base."""
    if not parts and (cause := common_cause(file, base)):
        return cause
    if base is None or not (other := _turned(file) or _other_base(file, base)):
        return None
    first = next((text for text in diagnostics.problems if text.startswith(str(file.path))), "")
    return f"{other} ({first.removeprefix(f'{file.path}: ')})" if first else other


def _warned(
    path: Path, config: PeftConfig | None, parts: Parts, diagnostics: Diagnostics
) -> tuple[PeftConfig | None, Parts]:
    """The same, with a warning noted where the adapter changes nothing."""
    if parts and all(tensors.keys() == {"A", "B"} and not tensors["B"].array.any() for tensors in parts.values()):
        diagnostics.warn(path, "every B is zero: the adapter changes nothing")
    return config, parts


def _turned(file: SafetensorsFile) -> str | None:
    """A sentence, if every A is [d, r] and every B [r, d], where they should be [r, d] and [d, r]."""
    shapes = [
        (A, file.shapes.get(name.replace("lora_A", "lora_B"), ()))
        for name, A in file.shapes.items()
        if "lora_A" in name
    ]
    pairs = [(A, B) for A, B in shapes if len(A) == len(B) == 2]
    if all(A[0] == B[1] for A, B in pairs) or any(A[1] != B[0] for A, B in pairs):
        return None
    return f"lora_A is {list(pairs[0][0])} and lora_B {list(pairs[0][1])}: they are transposed, or each is the other"


def _other_base(file: SafetensorsFile, base: ModelConfig) -> str | None:
    """A sentence, if the tensors are clearly those of an adapter for another base."""
    layers = 1 + max((int(match[1][:9]) for name in file.shapes if (match := LAYER.search(name))), default=-1)
    reads_hidden = re.compile(r"\.(q|k|v|gate|up)_proj\.lora_A\.weight$")
    widths = {shape[1] for name, shape in file.shapes.items() if reads_hidden.search(name) and len(shape) == 2}
    hidden = widths.pop() if len(widths) == 1 else base.hidden_size
    if layers <= base.num_hidden_layers and hidden == base.hidden_size:
        return None
    made_for = f"made for a base with {layers} layers and hidden size {hidden}"
    return f"{made_for}; this one has {base.num_hidden_layers} and {base.hidden_size}"


def _adapter(name: str, config: PeftConfig, parts: Parts, base: ModelConfig | None) -> Adapter:
    """The checked parts, copied out of the map. Halves of an expert that share A share the copy of it."""
    As = {id(tensors["A"].array): read_only_copy(tensors["A"].array) for tensors in parts.values() if "A" in tensors}
    lora = {
        module: LoraTensors(
            As[id(tensors["A"].array)],
            read_only_copy(tensors["B"].array, order="F"),  # as slots have it, which do not copy it again then
            *(read_only_copy(tensors[part].array) if part in tensors else None for part in ("lora_bias", "magnitude")),
        )
        for module, tensors in sorted(parts.items())
        if "A" in tensors
    }
    full_weights = full_weights_of(parts, config, base)
    copies = {
        part.name: read_only_copy(part.array) for part in full_weights.values()
    }  # one tensor may stand for both tables
    replaced = {module: copies[part.name] for module, part in full_weights.items()}
    if SCORE in parts:
        replaced[SCORE] = read_only_copy(parts[SCORE]["saved"].array)
    biases = {
        module: read_only_copy(tensors["bias"].array) for module, tensors in sorted(parts.items()) if "bias" in tensors
    }
    return Adapter(name, config, lora, replaced, biases, token_rows(parts, config, base))


def read_only_copy(x: Array, order: Literal["K", "F"] = "K") -> Array:
    """Return the array, out of the memory map of its file. order "F": it lies column by column from now on."""
    copy = np.array(x, order=order)
    copy.flags.writeable = False
    return copy
