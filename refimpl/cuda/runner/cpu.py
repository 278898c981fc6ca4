"""Kernels on a CPU: a .cu built by a C++ compiler with kernels/cpu/cuda_on_cpu.h in front of it, called by ctypes.

Builds are kept outside the checkout, under a hash of everything that they are made of. CXX names a compiler,
LORACLE_CXXFLAGS adds flags: -O0 for stepping through a kernel in gdb, -DCPU_UCONTEXT for the portable way to switch
from one thread to the next.
"""

import atexit
import bisect
import contextlib
import ctypes
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
import time
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DeviceError, KernelError
from .. import line_table
from .module import Module, Traffic, current_schedule, headers, kernels_folder


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
        with contextlib.suppress(OSError):  # zig's libraries do not say that they need expf
            ctypes.CDLL("libm.so.6", ctypes.RTLD_GLOBAL)
        self.debug_information = debug_information(self.library)
        self.so = ctypes.CDLL(str(self.library))
        self.so.cpu_kernel.restype = ctypes.POINTER(Row)
        self.so.cpu_failure.restype = ctypes.POINTER(Failure)
        if check:
            self.so.cpu_traffic.restype = ctypes.POINTER(ctypes.c_uint64)
        for i, (name, expected) in enumerate(self.kernels.items()):
            row = self.so.cpu_kernel(i).contents
            ours = "".join("*" * p.pointer + p.letter for p in expected)
            assert (row.name, row.signature) == (name.encode(), ours.encode()), (name, ours, row.name, row.signature)

    def _launch(
        self, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], words: list[int], smem: int
    ) -> dict[str, Traffic] | None:
        schedule = current_schedule()
        order, seed = (2, schedule) if isinstance(schedule, int) else (("forward", "reverse").index(schedule), 0)
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
            other_file, other_line = self.place(failure.other_pc)
            text += f" (at {Path(other_file).name}:{other_line})"
        text = re.sub(r"argument (\d+)", lambda match: self.kernels[name][int(match[1])].name, text)
        if kind == "crash" and not self.check:
            text += f". Run it under the checker, which says more: {CHECK_IT}"
        file = Path(file).name or self.path.name
        return KernelError(
            f"{file}:{line}: {name}, block {block}, thread {thread}: {kind}: {text}",
            name,
            kind,
            file,
            line,
            block,
            thread,
        )

    @cached_property
    def line_rows(self) -> list[line_table.Row]:
        """The line table, read when something is first found wrong."""
        return line_table.rows(self.debug_information)

    def place(self, pc: int) -> tuple[str, int]:
        """File and line of the call that returns to pc; of the kernel where kernels/cpu was inlined into it."""
        rows = self.line_rows
        for i in range(bisect.bisect_left(rows, pc, key=lambda row: row[0]) - 1, -1, -1):
            _, file, line = rows[i]
            if Path(file).parent.name != "cpu":
                return file, line
        return "?", 0


# What makes the checker watch a launch.
CHECK_IT = "LORACLE_CHECK_KERNELS=1"

FLAGS = "-std=c++17 -O2 -gdwarf-4 -fPIC -fvisibility=hidden -fno-strict-aliasing -fno-exceptions -fno-rtti"
# g++ cannot know that smem_raw, which a kernel declares extern, needs no constructor.
GNU_FLAGS = "-fno-extern-tls-init -Wno-unknown-pragmas"
# __shared__ variables are found without a call to the loader.
GNU_X86_FLAGS = "-mtls-dialect=gnu2"
# Fibers return to places that no call came from.
X86_FLAGS = "-fcf-protection=none"
# A Mac's loader does not say where thread_local variables lie; kernels/cpu/image.h does then.
MAC_FLAGS = "-femulated-tls"
# Of the .cu alone: before every access the checker is called, and no load stands where the source does not have it.
CHECK_FLAGS = (
    "-O1 -DCPU_CHECK -fsanitize=thread -fsanitize=alignment,signed-integer-overflow,shift,integer-divide-by-zero"
)
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
    """What the compiler says of itself; part of what a build is known by."""
    return subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout


@lru_cache
def cache_folder() -> Path:
    """Where builds are kept; a folder for this process alone where there is no home to write to."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loracle" / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    folder = Path(tempfile.mkdtemp(prefix="loracle-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def drop_old_builds() -> None:
    """Builds of more than 30 days ago: their sources have changed since, or they will be made again."""
    for file in cache_folder().iterdir():
        with contextlib.suppress(OSError):  # another process may be faster
            if file.stat().st_mtime < time.time() - 30 * 24 * 3600:
                file.unlink()


def build(path: Path, kernels: Sequence[str], defines: Sequence[str], check: bool, flags: Sequence[str]) -> Path:
    """The shared library of one .cu, from the cache if it was built before."""
    if sys.platform == "win32":
        raise DeviceError("the kernels run on a GPU, or on a CPU under Linux or macOS: on Windows use WSL")
    cpu = kernels_folder() / "cpu"
    command = compiler()
    of_machine, checks = compiler_flags("clang" not in compiler_version(command), platform.machine(), sys.platform)
    base = [*of_machine, f"-I{cpu}", f"-I{kernels_folder()}", f"-I{path.parent}", *flags]
    checks = checks if check else []
    rows = "".join(f"CPU_KERNEL({name}),\n" for name in kernels)
    wrapper = f'#include "cuda_on_cpu.h"\n#include "{path}"\ncpu::Kernel cpu_kernels[] = {{\n{rows}}};\n'
    objects = [compiled(wrapper, [*base, *defines, *checks], [path, *headers(path)])]
    for part in ("machine.cpp", "memcheck.cpp") if check else ("machine.cpp",):
        objects.append(compiled((cpu / part).read_text(), [*base, *["-DCPU_CHECK"] * check], sorted(cpu.glob("*.h"))))
    link = [*command, "-shared"]
    if "ziglang" in command:  # which would first build a C++ library and a C library of its own, for minutes
        link = [*command[:-1], "cc", "-shared", "-nostdlib"]
    return cached(".so", [*link, *map(str, objects)])


def compiler_flags(gnu: bool, processor: str, system: str) -> tuple[list[str], list[str]]:
    """Return the flags of every file, and those that the .cu of a checking build has besides.

    gnu: g++, else clang. processor: platform.machine(); system: sys.platform."""
    x86 = processor in ("x86_64", "AMD64")
    words = [FLAGS, GNU_FLAGS * gnu, GNU_X86_FLAGS * (gnu and x86), X86_FLAGS * x86, MAC_FLAGS * (system == "darwin")]
    return " ".join(words).split(), f"{CHECK_FLAGS} {GNU_CHECK_FLAGS if gnu else CLANG_CHECK_FLAGS}".split()


def debug_information(library: Path) -> Path:
    """Return the file that has a library's debug information. On a Mac that lies in the object files until dsymutil
    gathers it; without dsymutil the checker knows no lines."""
    if sys.platform != "darwin" or not shutil.which("dsymutil"):
        return library
    return cached(".dwarf", ["dsymutil", "--flat", str(library)])


def compiled(source: str, flags: Sequence[str], includes: Sequence[Path]) -> Path:
    """The object file of one source that includes these files."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "source.cpp"
        file.write_text(source)
        parts = [source, *(include.read_text() for include in includes)]
        return cached(".o", [*compiler(), *flags, "-c"], parts, str(file))


def cached(suffix: str, command: Sequence[str], parts: Sequence[str] = (), source: str = "") -> Path:
    """What the command writes to -o, found again under the hash of the command, of the compiler and of `parts`."""
    digest = hashlib.sha256("\0".join([*command, compiler_version(compiler()), *parts]).encode()).hexdigest()
    target = cache_folder() / (digest[:24] + suffix)
    import fcntl  # there is none on Windows, where nothing comes as far as this

    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that need the same build: one of them waits
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}{suffix}")
            full_command = [*command, *([source] if source else []), "-o", str(partial)]
            done = subprocess.run(full_command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise KernelError(compiler_message(full_command, done.stderr), kind="does not compile")
            partial.replace(target)
            drop_old_builds()
    return target


def compiler_message(command: Sequence[str], errors: str) -> str:
    """Return what the compiler says of a .cu, without what is ours: the wrapper around it, and where files lie.

    An error that is in no .cu is one of the compiler or of kernels/cpu, and has the whole command."""
    lines = [line for line in errors.splitlines() if not re.search(r"^(In file included| +) from .*source\.cpp", line)]
    places = re.findall(r"^(\S*?([^/\s]+\.cuh?)):\d+", errors, re.M)
    if not places:
        return f"{shlex.join(command)}\n{errors}"
    for file, name in places:
        lines = [line.replace(file, name) for line in lines]
    first = next(name for _, name in places)
    return "\n".join([f"{first} does not compile:", *lines])
