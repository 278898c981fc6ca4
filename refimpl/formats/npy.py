"""A .npy file of plain numbers as an array; anything else is refused, a pickle above all.

numpy reads the header. What it lets pass is checked here: that the file is exactly as long as its header says, that
nothing in it is an object, and that the numbers lie in C order, little-endian, as TensorRT-LLM's reader wants them.
bfloat16, which numpy does not have, is the raw two-byte type V2, as TensorRT-LLM writes it (_utils.py, torch_to_numpy).
"""

import math
import mmap
import warnings
from pathlib import Path

import numpy as np

from ..arrays import DTYPES, Array
from ..loading.diagnostics import Diagnostics, shown
from ..loading.json_file import lfs_pointer

PLAIN = {"<f2": "float16", "<f4": "float32", "<f8": "float64", "|V2": "bfloat16", "<V2": "bfloat16"}
BFLOAT16 = np.dtype("V2")
MAGIC = b"\x93NUMPY"


def read_npy(path: Path, diagnostics: Diagnostics) -> Array | None:
    """The array, int32 or one of the four floats, read-only over the file's memory map; None with the problem noted."""
    try:
        with open(path, "rb") as file:
            head = file.read(200)
            if problem := _not_npy(head):
                diagnostics.problem(path, problem)
                return None
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a header that needs guessing is no header
                version = np.lib.format.read_magic(file)
                if version not in READERS:
                    diagnostics.problem(path, f"has version {version} of the .npy format; 1.0 and 2.0 are read")
                    return None
                shape, fortran_order, dtype = READERS[version](file)
            begin = file.tell()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        diagnostics.problem(path, f"cannot be read ({error.strerror or error})")
        return None
    except Exception as error:  # a damaged header reaches numpy's tokenizer, which raises what it likes
        diagnostics.problem(path, f"has no .npy header that can be read ({shown(str(error))})")
        return None
    if problem := _unusable(shape, fortran_order, dtype, len(mapped) - begin):
        diagnostics.problem(path, problem)
        return None
    kind = np.dtype(np.int32) if dtype.str == "<i4" else DTYPES[PLAIN[dtype.str]]
    return np.frombuffer(mapped, kind, math.prod(shape), begin if math.prod(shape) else 0).reshape(shape)


def write_npy(path: Path, x: Array) -> None:
    """The array as numpy.save writes it; bfloat16 as its two bytes."""
    x = np.ascontiguousarray(x)
    np.save(path, x.view(BFLOAT16) if x.dtype == DTYPES["bfloat16"] else x, allow_pickle=False)


READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _not_npy(head: bytes) -> str | None:
    """What the first bytes say against this being a .npy file."""
    if pointer := lfs_pointer(head):
        return pointer
    if head.startswith(MAGIC):
        return None
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "is a pickle, which can run code, and is not read"
    if head.startswith(b"PK\x03\x04"):
        return "is a .npz or a PyTorch file (a zip), not a .npy file"
    return f"is not a .npy file: it begins with {shown(head[:8])}"


def _unusable(shape: tuple[int, ...], fortran_order: bool, dtype: np.dtype, nbytes: int) -> str | None:
    """What a sound header says against the array."""
    if dtype.hasobject:
        return "asks for a pickle (Python objects), which can run code, and is not read"
    if dtype.str != "<i4" and dtype.str not in PLAIN:
        name = "float8 (V1)" if dtype.str == "|V1" else shown(dtype.str)
        return f"has dtype {name}; read are int32 (<i4), float16 (<f2), float32 (<f4), float64 (<f8) and bfloat16 (V2)"
    if any(isinstance(n, bool) or n < 0 for n in shape):
        return f"has shape {shown(list(shape))}"
    if fortran_order:
        return "is in Fortran order; TensorRT-LLM reads C order only"
    need = math.prod(shape) * dtype.itemsize
    if need != nbytes:
        return f"is damaged: shape {shown(list(shape))} of {dtype.str} takes {need} bytes, it has {nbytes}"
    return None
