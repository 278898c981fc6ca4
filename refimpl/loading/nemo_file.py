"""A NeMo adapter: model_config.yaml and the weights, in a tar (.nemo) or in a folder.

NeMo itself writes the weights as a pickle, model_weights.ckpt, which can run code and is not read. Where somebody has
saved the same tensors as model_weights.safetensors, they are.
"""

import os
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .diagnostics import Diagnostics, shown
from .safetensors_file import SafetensorsFile, open_safetensors

PICKLED, WEIGHTS, CONFIG = "model_weights.ckpt", "model_weights.safetensors", "model_config.yaml"
PICKLE = "a PyTorch pickle, which can run code, and is not read"
LARGEST_CONFIG = 2**20  # bytes: a model_config.yaml has a few thousand

CONVERT = (
    f"save its tensors as {WEIGHTS} in its place, where you trust it, or convert it: a NeMo 1 file with NeMo's "
    "scripts/checkpoint_converters/lora_converters/convert_nemo_to_canonical.py --hf_format, a NeMo 2 checkpoint with "
    "nemo.collections.llm.peft.export_lora; both write what PEFT loads, and PEFT's save_pretrained writes it as "
    "safetensors"
)


@dataclass(frozen=True, eq=False)
class NemoFile:
    """What lies in one, opened."""

    config: dict[str, Any]
    tensors: SafetensorsFile


def find_nemo(path: Path) -> str | None:
    """If a file, or a folder's only content, is a NeMo adapter that is not read: one sentence that says so, else
    None."""
    file = nemo_path(path)
    members = members_of(file)
    if members is None:
        damaged = os.path.isfile(file) and file.suffix == ".nemo"
        return "has the name of a NeMo file, but is no tar" if damaged else None
    if WEIGHTS in members:
        return None
    if PICKLED in members:
        name = file.name if file != path else PICKLED
        return f"is a NeMo adapter ({name}{'' if file != path else ' in it'}): {PICKLE}; {CONVERT}"
    return f"is a tar without {PICKLED} and {WEIGHTS}: no NeMo adapter" if file.suffix == ".nemo" else None


def is_nemo(path: Path) -> bool:
    """Whether a path is a NeMo adapter whose weights are safetensors."""
    return WEIGHTS in (members_of(nemo_path(path)) or {})


def nemo_path(path: Path) -> Path:
    """The .nemo in a folder, if there is one; else the path itself."""
    inside = sorted(Path(path).glob("*.nemo")) if os.path.isdir(path) else []
    return inside[0] if inside else Path(path)


def members_of(path: Path) -> dict[str, str] | None:
    """The files in a tar or a folder: the last piece of each name -> its whole name. None if it is neither."""
    if os.path.isdir(path):
        names = [name for name in (PICKLED, WEIGHTS, CONFIG) if os.path.exists(path / name)]
        return dict(zip(names, names, strict=True))
    if not os.path.isfile(path):
        return None
    try:
        with tarfile.open(path) as opened:
            return {os.path.basename(name): name for name in opened.getnames()}  # ./..., mp_rank_00/...
    except (tarfile.TarError, OSError, EOFError, ValueError):
        return None


def open_nemo(path: Path, diagnostics: Diagnostics) -> NemoFile | None:
    """Open the config and the tensors, or return None with what is wrong noted. Nothing stays unpacked."""
    file = nemo_path(path)
    members = members_of(file) or {}
    if CONFIG not in members:
        diagnostics.problem(file, f"has no {CONFIG}: without it the scale is unknown")
        return None
    if os.path.isdir(file):
        config = parse_yaml(file / CONFIG, (file / CONFIG).read_bytes(), diagnostics)
        tensors = open_safetensors(file / WEIGHTS, diagnostics)
        return NemoFile(config, tensors) if config and tensors else None
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(file) as opened:
        for name in (CONFIG, WEIGHTS):
            content = opened.extractfile(members[name])
            if content is None or (name == CONFIG and opened.getmember(members[name]).size > LARGEST_CONFIG):
                diagnostics.problem(file, f"{members[name]} in it is no file, or too large")
                return None
            with open(Path(scratch) / name, "wb") as copy:
                while piece := content.read(2**24):
                    copy.write(piece)
        config = parse_yaml(file, (Path(scratch) / CONFIG).read_bytes(), diagnostics)
        inner = Diagnostics()
        tensors = open_safetensors(Path(scratch) / WEIGHTS, inner)  # the map stays when the name is gone
        for text in inner.problems:
            diagnostics.problem(file, text.removeprefix(f"{scratch}/"))
    return NemoFile(config, replace(tensors, path=file)) if config and tensors else None


def parse_yaml(file: Path, raw: bytes, diagnostics: Diagnostics) -> dict[str, Any] | None:
    """The mapping in model_config.yaml, or None with what is wrong with it noted."""
    try:
        import yaml  # comes with tokenizers, by way of huggingface_hub
    except ImportError:
        diagnostics.problem(file, f"{CONFIG} is read by the yaml package, which is not here: pip install pyyaml")
        return None
    try:
        data = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        diagnostics.problem(file, f"{CONFIG} is not valid YAML ({' '.join(str(error).split())[:120]})")
        return None
    if not isinstance(data, dict):
        diagnostics.problem(file, f"{CONFIG} is {shown(data)}, not a mapping")
        return None
    return data
