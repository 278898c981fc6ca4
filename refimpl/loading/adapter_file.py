"""The tensors of a PEFT folder: one file, or shards of it, which transformers can write and PEFT does not read."""

import os
from pathlib import Path

from .adapter_place import WEIGHTS_FILE
from .checkpoint import checkpoint_files
from .diagnostics import Diagnostics
from .safetensors_file import SafetensorsFile, open_safetensors

SHARDS = "adapter_model-*-of-*.safetensors"
UNGATHERED = (
    "a process of ZeRO-3 or FSDP that had none of the parameters has saved it: gather them first, as "
    "accelerator.get_state_dict(model) does, and give them to save_pretrained(DIR, state_dict=...)"
)


def open_adapter(folder: Path, diagnostics: Diagnostics) -> SafetensorsFile | None:
    """Map the folder's tensors, or return None with what is wrong noted: nothing in it counts as wrong."""
    before = len(diagnostics.problems)
    paths = [folder / WEIGHTS_FILE]
    if not os.path.lexists(paths[0]):
        paths = checkpoint_files(folder, diagnostics, WEIGHTS_FILE)
    files = [file for path in paths if (file := open_safetensors(path, diagnostics))]
    if len(diagnostics.problems) > before or not files:
        return None
    if len(paths) > 1:
        names = f"{paths[0].name} to {paths[-1].name}"
        diagnostics.warn(folder, f"the tensors are in shards, {names}, which PEFT does not load: convert --to peft")
    file = _joined(files, diagnostics)
    if not file.stored:
        diagnostics.problem(file.path, f"has no tensors at all: {UNGATHERED}")
        return None
    empty = [name for name, shape in file.shapes.items() if 0 in shape]
    if len(empty) == len(file.shapes):
        shape = list(file.shapes[empty[0]])
        diagnostics.problem(file.path, f"all {len(empty)} tensors are empty ({empty[0]} {shape}): {UNGATHERED}")
        return None
    for name in empty:
        diagnostics.problem(file.path, f"tensor {name} is empty, {list(file.shapes[name])}: {UNGATHERED}")
    return file


def _joined(files: list[SafetensorsFile], diagnostics: Diagnostics) -> SafetensorsFile:
    """The shards as one file, under the first one's path; a tensor in two of them is a problem."""
    joined = files[0]
    for file in files[1:]:
        for name in joined.stored.keys() & file.stored.keys():
            diagnostics.problem(file.path, f"tensor {name} is also in an earlier shard")
        joined = SafetensorsFile(
            joined.path,
            {**joined.tensors, **file.tensors},
            {**joined.raw, **file.raw},
            {**joined.stored, **file.stored},
            {**joined.shapes, **file.shapes},
        )
    return joined
