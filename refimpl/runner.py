"""Launches the kernels of kernels/*.cu: on a GPU through CuPy, or on any CPU through kernels/cpu. One line for both:

    module = load("lora.cu", "float16")
    module.launch("bgmv_shrink", grid, block, [x, a, out, np.int32(tokens), 0.5], smem=0)

What an argument must be is read from the kernel's own parameter list and checked before every launch, because nobody
else does: a GPU takes any pointer for any other. A parameter of type DTYPE has the type that the module was loaded
with. An empty grid launches nothing.

REFIMPL_KERNELS=gpu or cpu chooses; without it the kernels run on the GPU if CuPy finds one. runner_gpu.py and
runner_cpu.py are the two worlds behind this file.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import DTYPES, device_namespace
from .errors import DeviceError, LoracleError

Order = str | int  # "forward", "reverse", or the seed of a shuffle

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

MAX_SHARED = 227 * 1024  # bytes per block; an H100 has as many
MAX_BLOCK, MAX_GRID = (1024, 1024, 64), (2**31 - 1, 65535, 65535)


class KernelError(RuntimeError):
    """A kernel is wrong: it does not compile, or the launch failed, or the checker found a bug.

    No LoracleError, because that is the user's mistake, and this is one of whoever wrote the kernel.
    """

    def __init__(
        self,
        message: str,
        kernel: str = "",
        kind: str = "",
        file: str = "",
        line: int = 0,
        block: tuple[int, ...] = (),
        thread: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message)
        self.kernel, self.kind, self.file, self.line, self.block, self.thread = kernel, kind, file, line, block, thread


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


@dataclass(frozen=True)
class Traffic:
    """Bytes that one launch moved to and from one argument; loaded == distinct_loaded: each byte was read once."""

    loaded: int = 0
    stored: int = 0
    distinct_loaded: int = 0
    distinct_stored: int = 0


# ----------------------------------------------------------------------------- what stands in a .cu


@lru_cache
def kernels_folder() -> Path:
    """kernels/ of the checkout, or its copy inside an installed package."""
    package = Path(__file__).parent
    for folder in (package / "_kernels", package.parent / "kernels"):
        if (folder / "cpu" / "cuda_on_cpu.h").exists():
            return folder
    raise DeviceError(f"no kernels in {package / '_kernels'} nor in {package.parent / 'kernels'}: install loracle anew")


def parameters(source: str, dtype: str) -> dict[str, list[Parameter]]:
    """Kernel -> its parameters, read from the source. KernelError for a type that is no pointer, int or float."""
    types = types_of(dtype)
    text = re.sub(r"//.*|/\*[\s\S]*?\*/", "", source)
    found = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)\s*{", text)
    return {
        name: [parameter(declaration.strip(), name, types) for declaration in listed.split(",") if declaration.strip()]
        for name, listed in found
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


def headers(path: Path) -> list[Path]:
    """Every header that a .cu can include."""
    folders = (path.parent, kernels_folder(), kernels_folder() / "cpu")
    return [header for folder in folders for header in sorted([*folder.glob("*.h"), *folder.glob("*.cuh")])]


# ----------------------------------------------------------------------------- load and launch


class Module:
    """One .cu, compiled for one dtype. `launch` starts one of its kernels."""

    array_type: Any

    def __init__(self, path: Path, dtype: str) -> None:
        self.path, self.dtype = path, dtype
        self.kernels = parameters(path.read_text(), dtype)
        self.defines = [f"-D{name}={ctype}" for name, ctype in types_of(dtype).items()]

    def launch(
        self, name: str, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], smem: int = 0
    ) -> dict[str, Traffic] | None:
        """Run a kernel with `smem` bytes of dynamic shared memory. The checking build returns what each argument moved.

        LoracleError for an argument that the kernel does not take; KernelError for a kernel that is wrong.
        """
        if name not in self.kernels:
            has = ", ".join(self.kernels)
            raise LoracleError(f"{self.path.name} has no kernel {name!r} for {self.dtype}; it has {has}")
        wanted = self.kernels[name]
        if len(args) != len(wanted):
            listed = ", ".join(p.name for p in wanted)
            raise LoracleError(f"{name} takes {len(wanted)} arguments ({listed}), not {len(args)}")
        words = [
            p.word(argument, f"{name}, {p.name}", self.array_type) for p, argument in zip(wanted, args, strict=True)
        ]
        grid3, block3 = shape(grid, MAX_GRID, f"{name}: grid"), shape(block, MAX_BLOCK, f"{name}: block")
        threads = block3[0] * block3[1] * block3[2]
        if not 1 <= threads <= 1024:
            raise LoracleError(f"{name}: a block of {threads} threads; 1 to 1024 are possible")
        if not 0 <= smem <= MAX_SHARED:
            raise LoracleError(f"{name}: {smem} bytes of shared memory; 0 to {MAX_SHARED} are possible")
        if 0 in grid3:
            return None
        return self._launch(name, grid3, block3, args, words, smem)

    def _launch(
        self, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], words: list[int], smem: int
    ) -> dict[str, Traffic] | None:
        raise NotImplementedError


def shape(given: Sequence[int], most: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Three numbers, the missing ones 1."""
    full = (*(int(n) for n in given), 1, 1, 1)[:3]
    if len(given) > 3 or any(not 0 <= n <= limit for n, limit in zip(full, most, strict=True)):
        raise LoracleError(f"{where} {tuple(given)}: at most {most}")
    return full


def world() -> str:
    """'gpu' or 'cpu': where the kernels run."""
    chosen = os.environ.get("REFIMPL_KERNELS", "")
    if chosen not in ("", "gpu", "cpu"):
        raise DeviceError(f"REFIMPL_KERNELS={chosen}: gpu or cpu wanted")
    return chosen or _found()


@lru_cache
def _found() -> str:
    try:
        device_namespace("cuda")
    except DeviceError:
        return "cpu"
    return "gpu"


def load(file: str | Path, dtype: str, check: bool = False) -> Module:
    """The kernels of one file (in kernels/, or anywhere by its absolute path), compiled for one dtype; cached.

    check=True: on a CPU the build that finds out-of-bounds and misaligned accesses, races, shared memory that was read
    before it was written, and counts bytes; on a GPU every launch is waited for, so that an error names its kernel.
    """
    types_of(dtype)
    path = kernels_folder() / file
    if not path.exists():
        raise LoracleError(f"{path}: no such file")
    return _load(path, dtype, check, world(), os.environ.get("REFIMPL_CXXFLAGS", ""), path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _load(path: Path, dtype: str, check: bool, where: str, flags: str, changed: int) -> Module:
    from .runner_cpu import CPUModule
    from .runner_gpu import GPUModule

    return CPUModule(path, dtype, check, flags) if where == "cpu" else GPUModule(path, dtype, check)


def synchronize() -> None:
    """Wait for all launches. KernelError, with the names of the last ones, if one of them failed. On a CPU, nothing."""
    if world() == "gpu":
        from .runner_gpu import wait

        wait()


_scheduling: ContextVar[Order] = ContextVar("scheduling", default="forward")


@contextlib.contextmanager
def order(chosen: Order) -> Iterator[None]:
    """Inside, the CPU runner schedules blocks and threads 'forward', in 'reverse', or shuffled by a seed."""
    if chosen not in ("forward", "reverse") and not isinstance(chosen, int):
        raise LoracleError(f"order {chosen!r}: 'forward', 'reverse' or the seed of a shuffle wanted")
    token = _scheduling.set(chosen)
    try:
        yield
    finally:
        _scheduling.reset(token)


def scheduling() -> Order:
    """The order that is in force."""
    return _scheduling.get()
