"""Writing, whole or not at all: a folder gets its name when everything in it is there."""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..arrays import Array, to_host
from ..errors import LoracleError
from ..loading.diagnostics import one_line

PYTORCH = {"format": "pt"}  # transformers asks for it in the metadata


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, made because something of that name shall be; it vanishes at the end.

    LoracleError if there is something under that name already, other than an empty folder, or on an OSError inside."""
    target = Path(target)
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise LoracleError(one_line(f"{target}: is there already; give the name of a new folder, or remove it"))
    scratch = target.parent / f".{target.name}-{secrets.token_hex(4)}"
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise LoracleError(one_line(f"{target}: cannot be made ({error.strerror})")) from None
    try:
        yield scratch
    except OSError as error:
        raise LoracleError(one_line(f"{target}: cannot be written ({error})")) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # gone already where it was renamed


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` at the end, or vanishes if anything goes wrong.

    LoracleError if there is something under that name already, other than an empty folder."""
    target = Path(target)
    with scratch_folder(target) as scratch:
        yield scratch
        if target.is_dir():
            target.rmdir()
        scratch.rename(target)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that becomes it at the end, or vanishes if anything goes wrong.

    LoracleError if there is something under that name already."""
    target = Path(target)
    if os.path.lexists(target):
        raise LoracleError(one_line(f"{target}: is there already; give the name of a new file, or remove it"))
    scratch = target.parent / f".{target.name}-{secrets.token_hex(4)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        scratch.rename(target)
    except OSError as error:
        raise LoracleError(one_line(f"{target}: cannot be written ({error})")) from None
    finally:
        scratch.unlink(missing_ok=True)  # gone already where it was renamed


def write_safetensors(file: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] = PYTORCH) -> None:
    """Write the arrays under their names; bfloat16 as such. Who may read the file is decided by the umask.

    OSError if it cannot be written, as from any other file: to the library a full disk is an error of its own."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    file.touch()
    mode = file.stat().st_mode
    try:
        save_file({name: np.ascontiguousarray(to_host(x)) for name, x in tensors.items()}, file, dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from None
    file.chmod(mode)  # save_file leaves one that its owner alone can read
