"""An adapter as it lies on disk: a PEFT folder -> an Adapter, honoured in full or refused by name."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .arrays import Array, Float
from .config import ModelConfig, Module
from .errors import AdapterError, AdapterWarning
from .loading.findings import Findings
from .loading.peft_config import CONFIG_FILE, PeftConfig, pattern_value, read_peft_config
from .loading.peft_selection import check_selected, check_vocabulary, check_whole
from .loading.peft_tensors import Parts, check_lora, sort_parts, whole
from .loading.safetensors_file import open_safetensors

__all__ = ["Adapter", "LoraTensors", "PeftConfig", "load_adapter", "pattern_value"]

WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, eq=False, slots=True)
class LoraTensors:
    """One module's tensors as stored. A of embed_tokens is [rank, vocab]: its columns are looked up by token id."""

    A: Float[Array, "rank d_in"]
    B: Float[Array, "d_out rank"]
    bias: Float[Array, " d_out"] | None = None  # PEFT's lora_bias: the bias of lora_B


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """A LoRA adapter: read-only arrays, compared by identity, so that two loads of one folder are two adapters."""

    name: str
    config: PeftConfig
    lora: Mapping[Module, LoraTensors]
    replaced: Mapping[Module, Array] = field(default_factory=dict)  # modules_to_save: a whole embed_tokens or lm_head
    biases: Mapping[Module, Array] = field(default_factory=dict)  # bias="all" or "lora_only": a layer's bias, replaced

    def __repr__(self) -> str:
        return f"Adapter({self.name!r}, r={self.config.r}, {len(self.lora)} modules)"


def load_adapter(path: str | Path, config: ModelConfig, name: str | None = None) -> Adapter:
    """A PEFT LoRA folder for a base of this config; or one of the embedded voices, by its name.

    AdapterError, one line, if anything in it would not be honoured: nothing is loaded then. AdapterWarning, once each,
    for what is honoured but odd. The arrays are read-only copies in the file's own type: they do not change if the file
    does, so that a digest of them stays true. Raw tensors: alpha and the patterns are in `.config`, not applied.
    """
    if not isinstance(config, ModelConfig):
        raise AdapterError(f"load_adapter needs the base's config, as model.config; not {type(config).__name__}")
    folder, found = adapter_folder(path), Findings()
    adapter = read_adapter(folder, config, name or os.path.basename(os.path.abspath(folder)), found)
    found.raise_first(AdapterError, folder, " --model BASE")
    assert adapter is not None  # None comes with a problem
    for warning in found.warnings:
        warnings.warn(warning, AdapterWarning, stacklevel=2)
    return adapter


def adapter_folder(path: str | Path) -> Path:
    """The folder that an adapter's path means: a voice of the embedded model, unless there is a folder of that name."""
    if not os.path.exists(path):  # os.path, not Path: a name that is too long is no file, and no exception
        from . import tiny

        return Path(tiny.VOICES.get(str(path), path))
    return Path(path)


def read_adapter(folder: Path, base: ModelConfig | None, name: str, found: Findings) -> Adapter | None:
    """As load_adapter, with every problem and warning noted; without a base, its shapes and layers are not compared."""
    config, parts = read_parts(folder, base, found)
    return None if config is None or found.problems else _adapter(name, config, parts, base)


def read_parts(folder: Path, base: ModelConfig | None, found: Findings) -> tuple[PeftConfig | None, Parts]:
    """The config and the tensors of a folder, still in the memory map, with every problem and warning noted."""
    if problem := _not_an_adapter(folder):
        found.problem(folder, problem)
        return None, {}
    config = read_peft_config(folder, found)
    file = open_safetensors(folder / WEIGHTS_FILE, found)
    parts = sort_parts(file, base, found) if file else {}
    if config and file:
        check_lora(parts, config, base, file.path, found)
        check_whole(parts, config, base, file.path, found)
        if base:
            check_vocabulary(parts, config, base, file.path, found)
            check_selected(parts, config, base, folder, found)
        if parts and all(held.keys() == {"A", "B"} and not held["B"].array.any() for held in parts.values()):
            found.warn(file.path, "every B is zero: the adapter changes nothing")
    return config, parts


def _not_an_adapter(folder: Path) -> str | None:
    """Why a path cannot be a PEFT folder, if it cannot."""
    if not os.path.isdir(folder):
        if os.path.isfile(folder):
            return "is a file; give the folder, because the scale is in the adapter_config.json beside it"
        from . import tiny

        return f"is not there; the embedded voices are {', '.join(tiny.VOICES)}"
    if not os.path.exists(folder / CONFIG_FILE):
        inside = [f.parent.name for f in sorted(folder.glob(f"*/{CONFIG_FILE}"))]
        if inside:
            return f"has no {CONFIG_FILE}, but these folders in it have: {', '.join(inside[:5])}"
        files = [f.name for f in sorted(folder.glob("*.safetensors"))]
        if files:
            return f"has {files[0]} but no {CONFIG_FILE}: without it the scale (lora_alpha) is unknown"
        return f"has no {CONFIG_FILE}"
    if not os.path.exists(folder / WEIGHTS_FILE):
        if os.path.exists(folder / "adapter_model.bin"):
            return f"has adapter_model.bin but no {WEIGHTS_FILE}: {CONVERT}"
        return f"has no {WEIGHTS_FILE}"
    return None


CONVERT = (
    "it is a pickle, which can run code, and is not read; convert it where you trust it: "
    "peft.PeftModel.from_pretrained(base, DIR).save_pretrained(NEW)"
)


def _adapter(name: str, config: PeftConfig, parts: Parts, base: ModelConfig | None) -> Adapter:
    """The checked parts, copied out of the map."""
    lora = {
        module: LoraTensors(
            _owned(held["A"].array),
            _owned(held["B"].array),
            _owned(held["lora_bias"].array) if "lora_bias" in held else None,
        )
        for module, held in sorted(parts.items())
        if "A" in held
    }
    brought = whole(parts, config, base)
    copies = {part.name: _owned(part.array) for part in brought.values()}  # one tensor may stand for both tables
    replaced = {module: copies[part.name] for module, part in brought.items()}
    biases = {module: _owned(held["bias"].array) for module, held in sorted(parts.items()) if "bias" in held}
    return Adapter(name, config, lora, replaced, biases)


def _owned(x: Array) -> Array:
    copy = np.array(x)
    copy.flags.writeable = False
    return copy
