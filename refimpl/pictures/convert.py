"""A picture adapter from one form of file into another: read as it is, written as what is asked for."""

from pathlib import Path

from ..formats.convert import Conversion
from ..loading.diagnostics import Diagnostics
from ..loading.safetensors_file import open_safetensors
from .adapter_file import adapter_file, load_picture_adapter
from .adapter_names import KOHYA
from .adapter_writer import save_picture_adapter
from .config import PictureConfig


def convert_picture_adapter(
    source: str | Path, target: Path, to: str, config: PictureConfig, dtype: str | None = None
) -> Conversion:
    """Read source, write the new `target`: a folder (diffusers) or a file (kohya). config is that of the base.

    LoracleError, one line, and nothing new, if anything would be lost."""
    adapter, file = load_picture_adapter(source, config), adapter_file(source)
    save_picture_adapter(adapter, target, config, to, dtype)
    stored = open_safetensors(file, Diagnostics())
    was = "kohya" if stored and any(name.startswith(KOHYA) for name in stored.stored) else "diffusers"
    done = Conversion(str(file), str(target), was, to)
    done.files = sorted(path.name for path in target.iterdir()) if target.is_dir() else [target.name]
    if to == "kohya" and adapter.config.use_rslora:
        done.notes.append("rsLoRA is not in this format: each alpha is the one whose alpha / rank is the same scale")
    return done
