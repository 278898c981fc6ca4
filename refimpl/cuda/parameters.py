"""What a kernel takes, read from its own parameter list: nobody else checks that an argument fits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import DTYPES
from ..errors import KernelError, LoracleError

CTYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}  # name of a dtype -> DTYPE


def types_of(dtype: str) -> dict[str, str]:
    """What DTYPE and CACHE_DTYPE stand for: 'float16' both, 'float16/float32' where the KV cache holds another type."""
    names = (dtype.split("/") * 2)[:2]
    if any(name not in CTYPES for name in names):
        raise LoracleError(f"the kernels know no dtype {dtype!r}; choose one of {', '.join(CTYPES)}")
    return {"DTYPE": CTYPES[names[0]], "CACHE_DTYPE": CTYPES[names[1]]}


# C type in a parameter list -> (letter, as in cuda_on_cpu.h; numpy type)
PARAMETERS = {
    "float": ("f", np.float32),
    "__half": ("e", np.float16),
    "__nv_bfloat16": ("b", DTYPES["bfloat16"].type),
    "int": ("i", np.int32),
    "unsigned": ("I", np.uint32),
    "unsigned int": ("I", np.uint32),
    "long long": ("q", np.int64),
    "unsigned long long": ("Q", np.uint64),
    "short": ("h", np.int16),
    "unsigned short": ("H", np.uint16),
    "signed char": ("c", np.int8),
    "unsigned char": ("B", np.uint8),
}
SCALARS = "iIqQf"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel, as its source declares it."""

    name: str
    letter: str
    dtype: np.dtype
    pointer: bool
    written: bool  # a pointer to something that is not const

    def word(self, argument: Any, where: str, array_type: Any) -> int:
        """The argument as the 8 bytes that the kernel gets: an address, or the bits of a scalar."""
        if self.pointer:
            if argument is None:
                return 0
            if not isinstance(argument, array_type):
                raise LoracleError(
                    f"{where}: {array_type.__module__}.{array_type.__name__} wanted, not {argument!r:.60}"
                )
            # CuPy before 14 has no bfloat16: there the bits travel as uint16.
            bits = self.letter == "b" and argument.dtype == np.uint16
            if argument.dtype != self.dtype and not bits:
                raise LoracleError(f"{where}: an array of {self.dtype} wanted, not of {argument.dtype}")
            if not argument.flags.c_contiguous:
                raise LoracleError(
                    f"{where}: the array is not contiguous (shape {argument.shape}, strides {argument.strides})"
                )
            if self.written and array_type is np.ndarray and not argument.flags.writeable:
                raise LoracleError(f"{where}: the kernel writes to it, and the array is read-only")
            return int(argument.ctypes.data if array_type is np.ndarray else argument.data.ptr)
        if self.dtype.kind == "f" and isinstance(argument, (float, np.floating)):
            return int.from_bytes(np.float32(argument).tobytes(), "little")
        if self.dtype.kind != "f" and isinstance(argument, (int, np.integer)) and not isinstance(argument, bool):
            info = np.iinfo(self.dtype)
            if not info.min <= argument <= info.max:
                raise LoracleError(f"{where}: {argument} does not fit into {self.dtype}")
            return int(argument) & (2**64 - 1)
        raise LoracleError(
            f"{where}: a number of type {self.dtype} wanted, not {argument!r:.60} ({type(argument).__name__})"
        )


def parameters(source: str, dtype: str) -> dict[str, list[Parameter]]:
    """Kernel -> its parameters, read from the source. KernelError for a type that is no pointer, int or float."""
    types = types_of(dtype)
    text = re.sub(r"//.*|/\*[\s\S]*?\*/", "", source)
    signatures = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)\s*{", text)
    return {
        name: [parameter(declaration.strip(), name, types) for declaration in listed.split(",") if declaration.strip()]
        for name, listed in signatures
    }


def parameter(declaration: str, kernel: str, types: Mapping[str, str]) -> Parameter:
    """'const DTYPE *__restrict__ x' -> Parameter."""
    *words, name = re.findall(r"\w+|\*", declaration.replace("__restrict__", ""))
    ctype = " ".join(word for word in words if word not in ("const", "*"))
    ctype, pointer = types.get(ctype, ctype), "*" in words
    if ctype not in PARAMETERS or (not pointer and PARAMETERS[ctype][0] not in SCALARS):
        raise KernelError(
            f"{kernel}: parameter {declaration!r}: no pointer, int, long long or float", kernel, "parameter"
        )
    letter, numpy_type = PARAMETERS[ctype]
    return Parameter(name, letter, np.dtype(numpy_type), pointer, written=pointer and "const" not in words)
