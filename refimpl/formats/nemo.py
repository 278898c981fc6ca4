"""NeMo adapters: recognised, not read. A .nemo is a tar with a pickle in it, and a pickle can run code."""

import os
import tarfile
from pathlib import Path

WEIGHTS = "model_weights.ckpt"
PICKLE = "a PyTorch pickle, which can run code, and is not read"

CONVERT = (
    "convert it where you trust it: a NeMo 1 file with NeMo's scripts/checkpoint_converters/lora_converters/"
    "convert_nemo_to_canonical.py --hf_format, a NeMo 2 checkpoint with nemo.collections.llm.peft.export_lora; both "
    "write what PEFT loads, and PEFT's save_pretrained writes it as safetensors"
)


def find_nemo(path: Path) -> str | None:
    """If a file, or a folder's only content, is a NeMo adapter: one sentence that says so, else None."""
    file = Path(path)
    if os.path.isdir(file):
        inside = sorted(file.glob("*.nemo"))
        if not inside and not os.path.exists(file / WEIGHTS):
            return None
        name = inside[0].name if inside else WEIGHTS
        return f"is a NeMo adapter ({name}): {PICKLE}; {CONVERT}"
    if not os.path.isfile(file):
        return None
    members = _members(file)
    if members is None:
        return "has the name of a NeMo file, but is no tar" if file.suffix == ".nemo" else None
    if any(os.path.basename(name) == WEIGHTS for name in members):  # ./model_weights.ckpt, mp_rank_00/...
        return f"is a NeMo adapter ({WEIGHTS} in a tar): {PICKLE}; {CONVERT}"
    return f"is a tar without {WEIGHTS}: no NeMo adapter" if file.suffix == ".nemo" else None


def _members(file: Path) -> list[str] | None:
    """The names in a tar; None if it is none. Nothing is unpacked."""
    try:
        with tarfile.open(file) as opened:
            return opened.getnames()
    except (tarfile.TarError, OSError, EOFError, ValueError):
        return None
