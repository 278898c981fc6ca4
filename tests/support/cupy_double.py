"""A CuPy without a GPU: `with installed(13):` and everything in refimpl/ that asks for device cuda gets strict arrays.

Arrays are those of device_array.py. A kernel that is compiled with RawModule runs on the CPU runner, behind the GPU's
own path: what refimpl/cuda/runner/gpu.py hands over are NVRTC's options, addresses and scalars, as on a GPU. This shows
that host and device are never mixed up, and what crosses between them; of a GPU's numerics, memory and speed it shows
nothing.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from . import device_array
from .device_array import DeviceArray, check_dtype, note, to_operand, transfers

CTYPES = {"float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}


class CUDARuntimeError(RuntimeError):
    """cupy.cuda.runtime.CUDARuntimeError."""


class CUDADriverError(RuntimeError):
    """cupy.cuda.driver.CUDADriverError."""


class CompileException(Exception):
    """cupy.cuda.compiler.CompileException."""


# ---- functions of arrays --------------------------------------------------------------------------------------------


def asarray(x: Any, dtype: Any = None) -> DeviceArray:
    """The array on the device: an upload, unless it is there."""
    if isinstance(x, DeviceArray):
        return x if dtype is None else x.astype(dtype, copy=False)
    host = np.array(x, dtype=dtype)
    check_dtype(host.dtype)
    note("upload", host.nbytes)
    return DeviceArray(host)


def device(x: Any) -> np.ndarray:
    """What NumPy computes with. TypeError for anything that is not on the device: CuPy's functions are typed."""
    if not isinstance(x, DeviceArray):
        raise TypeError(f"Argument has incorrect type (expected cupy.ndarray, got {type(x).__name__})")
    return x.host


def ascontiguousarray(x: DeviceArray, dtype: Any = None) -> DeviceArray:
    """The array itself where it is contiguous and of the type."""
    host = np.ascontiguousarray(device(x), dtype)
    return x if host is x.host else DeviceArray(host)


def empty(shape: Any, dtype: Any = float) -> DeviceArray:
    """Memory as somebody left it: all bits 1, which is NaN in every type of numbers."""
    host = np.empty(shape, check_dtype(dtype))
    host.reshape(-1).view(np.uint8)[...] = 0xFF
    return DeviceArray(host)


def empty_like(x: DeviceArray) -> DeviceArray:
    """Memory of the same shape and type."""
    return empty(device(x).shape, x.dtype)


def zeros_like(x: DeviceArray) -> DeviceArray:
    """Zeros of the same shape and type."""
    return DeviceArray(np.zeros_like(device(x)))


def where(condition: DeviceArray, x: Any, y: Any) -> DeviceArray:
    """x where the condition holds, else y; these may be scalars."""
    return DeviceArray(np.where(device(condition), to_operand(x), to_operand(y)))


def creator(function: Callable) -> Callable:
    """np.zeros -> cupy.zeros: made on the device, nothing is uploaded."""

    def create(*args: Any) -> DeviceArray:
        host = function(*args)
        check_dtype(host.dtype)
        return DeviceArray(host)

    return create


def elementwise(function: Callable) -> Callable:
    """np.exp -> cupy.exp; of device arrays and scalars, into a new array or `out`."""

    def compute(*operands: Any, out: DeviceArray | None = None) -> DeviceArray:
        if out is None:
            return DeviceArray(function(*map(to_operand, operands)))
        function(*map(to_operand, operands), out=device(out))
        return out

    return compute


def joined(function: Callable) -> Callable:
    """np.concatenate -> cupy.concatenate."""
    return lambda arrays, axis=0: DeviceArray(function([device(x) for x in arrays], axis))


def matmul(x: DeviceArray, y: DeviceArray, out: DeviceArray | None = None) -> DeviceArray:
    """np.matmul; out may be a view, as of CuPy's generalised ufuncs."""
    if out is None:
        return DeviceArray(np.matmul(device(x), device(y)))
    np.matmul(device(x), device(y), out=device(out))
    return out


def einsum(subscripts: str, *arrays: DeviceArray) -> DeviceArray:
    """np.einsum."""
    return DeviceArray(np.einsum(subscripts, *map(device, arrays)))


def norm(x: DeviceArray, axis: int) -> DeviceArray:
    """cupy.linalg.norm: the Euclidean length along an axis."""
    return DeviceArray(np.linalg.norm(device(x), axis=axis))


def copyto(target: DeviceArray, source: DeviceArray) -> None:
    """Overwrite one array by another."""
    target.host[...] = device(source)


def argsort(x: DeviceArray, axis: int = -1, kind: str | None = None) -> DeviceArray:
    """np.argsort, which is always stable here."""
    if kind not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")
    return DeviceArray(np.argsort(device(x), axis, "stable"))


def take_along_axis(x: DeviceArray, ids: DeviceArray, axis: int) -> DeviceArray:
    """np.take_along_axis."""
    return DeviceArray(np.take_along_axis(device(x), device(ids), axis))


class Generator:
    """cupy.random.default_rng."""

    def __init__(self, seed: int) -> None:
        self.host = np.random.default_rng(seed)

    def standard_normal(self, size: Any, dtype: Any = float) -> DeviceArray:
        """Normal numbers, made on the device."""
        return DeviceArray(self.host.standard_normal(size, dtype))

    def integers(self, low: int, high: int, size: Any, dtype: Any = int) -> DeviceArray:
        """Whole numbers."""
        return DeviceArray(self.host.integers(low, high, size, dtype))


# ---- kernels --------------------------------------------------------------------------------------------------------


class RawModule:
    """A .cu, compiled for the CPU runner. `options` are those that NVRTC would get."""

    def __init__(self, code: str, options: Sequence[str]) -> None:
        from refimpl.cuda.runner.cpu import CPUModule

        folders = [Path(option[2:]) for option in options if option.startswith("-I")]
        (path, *_) = [file for folder in folders for file in folder.glob("*.cu") if file.read_text() == code]
        defines = dict(re.findall(r"-D(\w+)=(\S+)", " ".join(options)))
        dtypes = [CTYPES[defines[name]] for name in ("DTYPE", "CACHE_DTYPE")]
        self.module = CPUModule(path, "/".join(dict.fromkeys(dtypes)), check=False, flags="")

    def compile(self) -> None:
        """Done already."""

    def get_function(self, name: str) -> Callable:
        """The kernel, to be called as kernel(grid, block, arguments, shared_mem=bytes)."""

        def launch(grid: Any, block: Any, arguments: Sequence[np.generic], shared_mem: int = 0) -> None:
            words = [int.from_bytes(argument.tobytes(), "little", signed=False) for argument in arguments]
            self.module._launch(name, grid, block, arguments, words, shared_mem)

        return launch


# ---- streams, events, memory ----------------------------------------------------------------------------------------


class Stream:
    """What is asked of it happens at once, so that a captured graph has nothing left to do."""

    def __init__(self, non_blocking: bool = False) -> None:
        pass

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        assert not device_array.capturing

    def begin_capture(self) -> None:
        """From here on nothing may cross between host and device."""
        device_array.capturing = True

    def end_capture(self) -> SimpleNamespace:
        """A graph."""
        device_array.capturing = False
        return SimpleNamespace(launch=lambda: None)

    def synchronize(self) -> None:
        """The host waits."""
        note("wait")


def cuda(cuda_version: int) -> SimpleNamespace:
    """cupy.cuda, as much of it as is used."""
    properties = {"name": b"Pretended GPU", "multiProcessorCount": 4, "l2CacheSize": 1 << 20, "totalGlobalMem": 1 << 28}
    attributes = {"MaxSharedMemoryPerBlockOptin": 227 * 1024, "L2CacheSize": 1 << 20}
    return SimpleNamespace(
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=lambda: 1,
            memGetInfo=lambda: (1 << 27, 1 << 28),
            getDeviceProperties=lambda device: properties,
            driverGetVersion=lambda: 1000 * cuda_version,
            runtimeGetVersion=lambda: 1000 * cuda_version,
        ),
        driver=SimpleNamespace(CUDADriverError=CUDADriverError),
        compiler=SimpleNamespace(CompileException=CompileException),
        nvrtc=SimpleNamespace(getVersion=lambda: (cuda_version, 0)),
        Device=lambda: SimpleNamespace(id=0, compute_capability="90", attributes=attributes),
        Event=lambda: SimpleNamespace(record=lambda: None),
        get_elapsed_time=lambda begin, end: 0.5,
        Stream=Stream,
        get_current_stream=Stream,
        MemoryPool=lambda: SimpleNamespace(malloc=None),
        using_allocator=lambda allocator: contextlib.nullcontext(),
    )


def cupy_double() -> ModuleType:
    """The module that `import cupy` gives."""
    cupy: Any = ModuleType("cupy")
    cupy.ndarray, cupy.RawModule, cupy.cuda = DeviceArray, RawModule, cuda(13)
    cupy.random = SimpleNamespace(default_rng=Generator)
    cupy.linalg = SimpleNamespace(norm=norm)
    cupy.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None)
    of_arrays = (matmul, einsum, argsort, take_along_axis)
    for function in (asarray, ascontiguousarray, empty, empty_like, zeros_like, where, copyto, *of_arrays):
        setattr(cupy, function.__name__, function)
    for name in ("zeros", "ones", "full", "arange"):
        setattr(cupy, name, creator(getattr(np, name)))
    for name in (
        "exp",
        "log",
        "sqrt",
        "abs",
        "isnan",
        "isfinite",
        "maximum",
        "tanh",
        "negative",
        "add",
        "subtract",
        "divide",
    ):
        setattr(cupy, name, elementwise(getattr(np, name)))
    for name in ("concatenate", "stack"):
        setattr(cupy, name, joined(getattr(np, name)))
    for name in ("uint16", "uint32", "int32", "int64", "float32", "float64", "inf", "nan"):
        setattr(cupy, name, getattr(np, name))
    return cupy


@contextlib.contextmanager
def installed(version: int) -> Iterator[ModuleType]:
    """Inside, `import cupy` is the double, with the manners of this version of CuPy; outside, all is as it was."""
    before, cupy = sys.modules.get("cupy"), cupy_double()
    sys.modules["cupy"], device_array.version = cupy, version
    forget()
    try:
        yield cupy
    finally:
        device_array.capturing = False
        if before is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = before
        forget()


def forget() -> None:
    """Nobody remembers which device there was, nor what was compiled for it."""
    from refimpl.arrays import device_namespace
    from refimpl.cuda import runner

    for function in (device_namespace, runner._load, runner._detected_device):
        function.cache_clear()
    transfers.clear()
