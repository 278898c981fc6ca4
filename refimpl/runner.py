"""Launches the kernels of kernels/*.cu: on a GPU through CuPy, or on any CPU through kernels/cpu. One line for both:

    module = load("lora.cu", "float16")
    module.launch("bgmv_shrink", grid, block, [x, a, out, np.int32(tokens), 0.5], smem=0)

What an argument must be is read from the kernel's own parameter list and checked before every launch, because nobody
else does: a GPU takes any pointer for any other. A parameter of type DTYPE has the type that the module was loaded
with. An empty grid launches nothing.

REFIMPL_KERNELS=gpu or cpu chooses; without it the kernels run on the GPU if CuPy finds one.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
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


def kernels_folder() -> Path:
    """kernels/ of the checkout, or its copy inside an installed package."""
    package = Path(__file__).parent
    for folder in (package / "_kernels", package.parent / "kernels"):
        if (folder / "cpu" / "cuda_on_cpu.h").exists():
            return folder
    raise DeviceError(f"no kernels in {package / '_kernels'} nor in {package.parent / 'kernels'}: install loracle anew")


def parameters(source: str, dtype: str) -> dict[str, list[Parameter]]:
    """Kernel -> its parameters, read from the source. KernelError for a type that is no pointer, int or float.

    What stands between #if IS_HALF(DTYPE) and #endif exists for the half types only.
    """
    types = types_of(dtype)
    types |= {"T": types["DTYPE"], "Cache": types["CACHE_DTYPE"]}  # as kernels/common.cuh calls them
    text = re.sub(r"//.*|/\*[\s\S]*?\*/", "", source)
    if types["DTYPE"] == "float":
        text = re.sub(r"^#if IS_HALF\(DTYPE\)$[\s\S]*?^#endif", "", text, flags=re.M)
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
    if chosen:
        return chosen
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
    return CPUModule(path, dtype, check, flags) if where == "cpu" else GPUModule(path, dtype, check)


# ----------------------------------------------------------------------------- on a CPU

_order: ContextVar[Order] = ContextVar("order", default="forward")


@contextlib.contextmanager
def order(scheduling: Order) -> Iterator[None]:
    """Inside, the CPU runner schedules blocks and threads 'forward', in 'reverse', or shuffled by a seed."""
    if scheduling not in ("forward", "reverse") and not isinstance(scheduling, int):
        raise LoracleError(f"order {scheduling!r}: 'forward', 'reverse' or the seed of a shuffle wanted")
    token = _order.set(scheduling)
    try:
        yield
    finally:
        _order.reset(token)


class Failure(ctypes.Structure):
    """`cpu::Failure` of kernels/cpu/machine.h."""

    _fields_ = (
        ("kind", ctypes.c_char * 32),
        ("file", ctypes.c_char * 512),
        ("text", ctypes.c_char * 1024),
        ("line", ctypes.c_int),
        ("block", ctypes.c_uint * 3),
        ("thread", ctypes.c_uint * 3),
        ("pc", ctypes.c_uint64),
        ("other_pc", ctypes.c_uint64),
    )


class Row(ctypes.Structure):
    """`cpu::Kernel` of kernels/cpu/machine.h."""

    _fields_ = (("name", ctypes.c_char_p), ("signature", ctypes.c_char_p), ("call", ctypes.c_void_p))


_one_at_a_time = threading.Lock()  # the machine's state is static


class CPUModule(Module):
    """The .cu built by a C++ compiler, with kernels/cpu/cuda_on_cpu.h in front of it, and called through ctypes."""

    array_type = np.ndarray

    def __init__(self, path: Path, dtype: str, check: bool, flags: str) -> None:
        super().__init__(path, dtype)
        self.check = check
        self.library = build(path, list(self.kernels), self.defines, check, shlex.split(flags))
        self.so = ctypes.CDLL(str(self.library))
        self.so.cpu_kernel.restype = ctypes.POINTER(Row)
        self.so.cpu_failure.restype = ctypes.POINTER(Failure)
        if check:
            self.so.cpu_traffic.restype = ctypes.POINTER(ctypes.c_uint64)
        for i, (name, wanted) in enumerate(self.kernels.items()):
            row = self.so.cpu_kernel(i).contents
            ours = "".join("*" * p.pointer + p.letter for p in wanted)
            assert (row.name, row.signature) == (name.encode(), ours.encode()), (name, ours, row.name, row.signature)

    def _launch(
        self, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], words: list[int], smem: int
    ) -> dict[str, Traffic] | None:
        chosen = _order.get()
        order, seed = (2, chosen) if isinstance(chosen, int) else (("forward", "reverse").index(chosen), 0)
        packed = (ctypes.c_uint64 * 3 * len(words))()
        for i, (word, argument) in enumerate(zip(words, args, strict=True)):
            array = isinstance(argument, np.ndarray)  # its bytes, and those of one element, are the checker's to know
            packed[i][:] = [word, argument.nbytes, argument.itemsize] if array else [word, 0, 0]
        with _one_at_a_time:
            failed = self.so.cpu_launch(
                list(self.kernels).index(name),
                packed,
                len(words),
                (ctypes.c_uint * 3)(*grid),
                (ctypes.c_uint * 3)(*block),
                ctypes.c_size_t(smem),
                order,
                ctypes.c_uint(seed),
            )
            if failed:
                raise self.error(name, self.so.cpu_failure().contents)
            if not self.check:
                return None
            moved = {
                p.name: Traffic(*self.so.cpu_traffic(i)[:4]) for i, p in enumerate(self.kernels[name]) if p.pointer
            }
            return {**moved, "shared": Traffic(*self.so.cpu_traffic(-1)[:4])}

    def error(self, name: str, failure: Failure) -> KernelError:
        """The failure that the machine noted down, as an exception."""
        kind, file, text = (field.decode(errors="replace") for field in (failure.kind, failure.file, failure.text))
        line, block, thread = failure.line, tuple(failure.block), tuple(failure.thread)
        if failure.pc:
            file, line = self.place(failure.pc)
        if failure.other_pc:
            text += f" (at {':'.join(map(str, self.place(failure.other_pc)))})"
        text = re.sub(r"argument (\d+)", lambda match: self.kernels[name][int(match[1])].name, text)
        file = Path(file).name
        return KernelError(
            f"{file}:{line}: {name}, block {block}, thread {thread}: {kind}: {text}",
            name,
            kind,
            file,
            line,
            block,
            thread,
        )

    def place(self, pc: int) -> tuple[str, int]:
        """File and line of an instruction; of the kernel's own line where kernels/cpu was inlined into it."""
        command = ["addr2line", "-i", "-e", str(self.library), hex(pc - 1)]  # pc is where the call returns to
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")
        for entry in found:
            file, _, line = entry.partition(" ")[0].rpartition(":")
            if line.isdigit() and Path(file).parent.name != "cpu":
                return Path(file).name, int(line)
        return "?", 0


FLAGS = "-std=c++17 -O2 -gdwarf-4 -fPIC -fvisibility=hidden -fno-strict-aliasing -fno-exceptions -fno-rtti"
# g++ cannot know that smem_raw, which a kernel declares extern, needs no constructor.
GNU_FLAGS = "-fno-extern-tls-init -Wno-unknown-pragmas"
# __shared__ variables are found without a call to the loader.
GNU_X86_FLAGS = "-mtls-dialect=gnu2"
# Fibers return to places that no call came from.
X86_FLAGS = "-fcf-protection=none"
# Of the .cu alone: before every access the checker is called, and no load stands where the source does not have it.
CHECK_FLAGS = "-O1 -DCPU_CHECK -fsanitize=thread -fsanitize=alignment,signed-integer-overflow,shift,integer-divide-by-zero"
GNU_CHECK_FLAGS = "-fno-tree-loop-im -fsanitize=bounds"
CLANG_CHECK_FLAGS = "-fsanitize=array-bounds"


@lru_cache
def compiler() -> tuple[str, ...]:
    """The command of a C++ compiler: CXX, g++, clang++, or the one inside the ziglang wheel."""
    given = os.environ.get("CXX")
    for command in [given] if given else ["g++", "clang++"]:
        if shutil.which(shlex.split(command)[0]):
            return tuple(shlex.split(command))
    with contextlib.suppress(ImportError):
        import ziglang  # noqa: F401

        return (sys.executable, "-m", "ziglang", "c++")
    raise DeviceError(
        "no GPU, and no C++ compiler to run the kernels on this CPU: install g++ or clang++, "
        "or pip install 'loracle[cpu-kernels]', which brings one"
    )


@lru_cache
def compiler_version(command: tuple[str, ...]) -> str:
    return subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout


def cache_folder() -> Path:
    """Where the builds are kept, outside the checkout."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loracle" / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build(path: Path, kernels: Sequence[str], defines: Sequence[str], check: bool, flags: Sequence[str]) -> Path:
    """The shared library of one .cu, from the cache if it was built before."""
    cpu = kernels_folder() / "cpu"
    command = compiler()
    gnu, x86 = "clang" not in compiler_version(command), platform.machine() in ("x86_64", "AMD64")
    words = [FLAGS, GNU_FLAGS * gnu, GNU_X86_FLAGS * (gnu and x86), X86_FLAGS * x86]
    base = [*" ".join(words).split(), f"-I{cpu}", f"-I{kernels_folder()}", f"-I{path.parent}", *flags]
    checks = f"{CHECK_FLAGS} {GNU_CHECK_FLAGS if gnu else CLANG_CHECK_FLAGS}".split() if check else []
    rows = "".join(f"CPU_KERNEL({name}),\n" for name in kernels)
    wrapper = f'#include "cuda_on_cpu.h"\n#include "{path}"\ncpu::Kernel cpu_kernels[] = {{\n{rows}}};\n'
    headers = [file for folder in (cpu, kernels_folder(), path.parent) for file in sorted(folder.glob("*.*h"))]
    objects = [compiled(wrapper, [*base, *defines, *checks], [path, *headers])]
    for part in ("machine.cpp", "memcheck.cpp") if check else ("machine.cpp",):
        objects.append(compiled((cpu / part).read_text(), [*base, *["-DCPU_CHECK"] * check], [cpu / "machine.h"]))
    return cached(".so", [*command, "-shared", *map(str, objects)])


def compiled(source: str, flags: Sequence[str], includes: Sequence[Path]) -> Path:
    """The object file of one source that includes these files."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "source.cpp"
        file.write_text(source)
        parts = [source, *(include.read_text() for include in includes if include.is_file())]
        return cached(".o", [*compiler(), *flags, "-c"], parts, str(file))


def cached(suffix: str, command: Sequence[str], parts: Sequence[str] = (), source: str = "") -> Path:
    """What the command writes to -o, found again under the hash of the command, of the compiler and of `parts`."""
    digest = hashlib.sha256("\0".join([*command, compiler_version(compiler()), *parts]).encode()).hexdigest()
    target = cache_folder() / (digest[:24] + suffix)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that need the same build: one of them waits
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}{suffix}")
            whole = [*command, *([source] if source else []), "-o", str(partial)]
            done = subprocess.run(whole, capture_output=True, text=True, check=False)
            if done.returncode:
                raise KernelError(f"{shlex.join(whole)}\n{done.stderr}", kind="does not compile")
            partial.replace(target)
    return target


# ----------------------------------------------------------------------------- on a GPU


class GPUModule(Module):
    """The .cu compiled by NVRTC for the GPU at hand."""

    def __init__(self, path: Path, dtype: str, check: bool) -> None:
        super().__init__(path, dtype)
        raise NotImplementedError
