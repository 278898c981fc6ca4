"""Launches the kernels of kernels/*.cu: on a GPU through CuPy, or on any CPU through kernels/cpu. One line for both:

    module = load("lora.cu", "float16")
    module.launch("bgmv_shrink", grid, block, [x, a, out, np.int32(tokens), 0.5], smem=0)

What an argument must be is read from the kernel's own parameter list and checked before every launch, because nobody
else does: a GPU takes any pointer for any other. A parameter of type DTYPE has the type that the module was loaded
with. An empty grid launches nothing.

LORACLE_KERNELS=gpu or cpu chooses; without it the kernels run on the GPU if CuPy finds one. LORACLE_CHECK_KERNELS=1
puts every launch under the checker. LORACLE_KERNELS_FOLDER is a copy of kernels/ to be used in its place. Compiled
modules are kept without the number of a device: one process uses one GPU.
"""

from functools import lru_cache
from pathlib import Path

from ...arrays import device_namespace
from ...errors import DeviceError, KernelError, LoracleError
from ..parameters import types_of
from .cpu import CPUModule
from .gpu import GPUModule, wait
from .module import Module, Traffic, headers, kernels_folder, setting, thread_schedule

__all__ = [
    "Module",
    "Traffic",
    "about_kernels",
    "always_checked",
    "device",
    "headers",
    "kernels_folder",
    "load",
    "synchronize",
    "thread_schedule",
]


def device() -> str:
    """Return where the kernels run: 'gpu' or 'cpu'. DeviceError for another word in LORACLE_KERNELS."""
    chosen = setting("KERNELS")
    if chosen not in ("", "gpu", "cpu"):
        raise DeviceError(f"LORACLE_KERNELS={chosen}: gpu or cpu wanted")
    return chosen or _detected_device()


@lru_cache
def _detected_device() -> str:
    try:
        device_namespace("cuda")
    except DeviceError:
        return "cpu"
    return "gpu"


def always_checked() -> bool:
    """Return whether LORACLE_CHECK_KERNELS asks for the checker at every launch."""
    return setting("CHECK_KERNELS") not in ("", "0")


def about_kernels(check: bool = False) -> str:
    """Return in a few words which kernels run, and on what: whoever edits a copy that does not run should see it."""
    machine = "the GPU" if device() == "gpu" else "this CPU"
    return f"kernels of {kernels_folder()}, on {machine}" + ", under the checker" * (check or always_checked())


def path_of(file: str | Path) -> Path:
    """Return where a .cu lies: a bare name in kernels/ if that has it; else from the current folder, as a Path always.

    LoracleError if it does not."""
    ours, theirs = kernels_folder() / file, Path(file).absolute()
    if ours.is_file() and Path(file).name == file:
        return ours
    if theirs.is_file():
        return theirs
    raise LoracleError(f"{theirs}: no such file, nor is it in {kernels_folder()}")


def load(file: str | Path, dtype: str, check: bool | None = None) -> Module:
    """Return the kernels of one file (a name in kernels/, or any path), compiled for one dtype; cached.

    check=True: on a CPU the build that finds out-of-bounds and misaligned accesses, races, shared memory that was read
    before it was written, and counts bytes; on a GPU every launch is waited for, so that an error names its kernel.
    None: as LORACLE_CHECK_KERNELS says.
    """
    types_of(dtype)
    path = path_of(file)
    check = always_checked() if check is None else check
    try:
        return _load(path, dtype, check, device(), setting("CXXFLAGS"), path.stat().st_mtime_ns)
    except KernelError as error:
        raise error.with_traceback(None) from None  # the message has what the compiler says, the build's frames nothing


@lru_cache(maxsize=256)
def _load(path: Path, dtype: str, check: bool, where: str, flags: str, changed: int) -> Module:
    return CPUModule(path, dtype, check, flags) if where == "cpu" else GPUModule(path, dtype, check)


def synchronize() -> None:
    """Wait for all launches. KernelError, with the names of the last ones, if one of them failed. On a CPU, nothing."""
    if device() == "gpu":
        wait()
