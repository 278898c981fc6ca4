"""Kernels on a GPU: a .cu compiled by NVRTC and launched through CuPy."""

import contextlib
import hashlib
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import device_namespace
from ...errors import DeviceError, KernelError
from .cuda_headers import include_folders
from .module import Module, Traffic, headers, kernels_folder

_launched: deque[str] = deque(maxlen=8)  # since the last time that somebody waited for the GPU


class GPUModule(Module):
    """The .cu compiled by NVRTC for the GPU at hand."""

    def __init__(self, path: Path, dtype: str, check: bool) -> None:
        super().__init__(path, dtype)
        cupy = gpu()
        device = cupy.cuda.Device()
        has = int(device.compute_capability)
        needs = 80 if "bfloat16" in dtype else 70
        if has < needs:
            raise DeviceError(f"{dtype} kernels need compute capability {needs / 10}; this GPU has {has / 10}")
        self.array_type, self.check = cupy.ndarray, check
        self.max_shared: int = device.attributes["MaxSharedMemoryPerBlockOptin"]
        # CuPy keeps what it has compiled under a hash of the source and the options. Of the headers it knows nothing.
        digest = hashlib.sha256("".join(header.read_text() for header in headers(path)).encode()).hexdigest()[:16]
        options = [
            "-std=c++17",
            "-lineinfo",
            f"-I{kernels_folder()}",
            f"-I{path.parent}",
            *(f"-I{folder}" for folder in include_folders(cupy.cuda.nvrtc.getVersion()[0])),
            f"-DLORACLE_HEADERS=0x{digest}",
        ]
        self.module = cupy.RawModule(code=path.read_text(), options=(*options, *self.defines))
        try:
            self.module.compile()
        except cupy.cuda.compiler.CompileException as error:
            raise KernelError(f"{path.name} for {dtype}: {error}", kind="does not compile") from None

    def _launch(
        self, name: str, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], words: list[int], smem: int
    ) -> dict[str, Traffic] | None:
        if smem > self.max_shared:
            raise DeviceError(f"{name}: {smem} bytes of shared memory; this GPU has {self.max_shared} per block")
        typed = [
            np.uint64(word) if parameter.pointer else parameter.dtype.type(argument)
            for word, parameter, argument in zip(words, self.kernels[name], args, strict=True)
        ]
        with errors_named(f"{name} ({self.path.name}), grid {grid}, block {block}, {smem} bytes of shared memory"):
            kernel = self.module.get_function(name)
            if smem > 48 * 1024:  # more than a kernel may have without asking
                kernel.max_dynamic_shared_size_bytes = smem
            kernel(grid, block, tuple(typed), shared_mem=smem)
        _launched.append(name)
        if self.check:
            wait()
        return None


@contextlib.contextmanager
def errors_named(launch: str) -> Iterator[None]:
    """CUDA's errors, with the name of the kernel. A launch only asks for work: its errors can show in a later one."""
    cupy = gpu()
    try:
        yield
    except (cupy.cuda.driver.CUDADriverError, cupy.cuda.runtime.CUDARuntimeError) as error:
        before = ", ".join(_launched)
        raise KernelError(f"{launch}: {error}" + (f"; launched before it: {before}" if before else "")) from error


def wait() -> None:
    """Until all launches are done. KernelError, with the names of the last ones, if one of them failed."""
    with errors_named("waiting for the GPU"):
        gpu().cuda.get_current_stream().synchronize()
    _launched.clear()


def gpu() -> Any:
    """CuPy. DeviceError in one line that says what is missing."""
    try:
        return device_namespace("cuda")
    except DeviceError as error:
        if not sys.modules.get("cupy"):
            raise
        runtime = sys.modules["cupy"].cuda.runtime
        has, needs = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if has == 0:
            raise DeviceError("no NVIDIA driver; LORACLE_KERNELS=cpu runs the kernels on this CPU") from None
        if has // 1000 < needs // 1000:
            raise DeviceError(
                f"the NVIDIA driver knows CUDA {version(has)}, CuPy wants {version(needs)}: update the driver, "
                f"or pip install 'loracle[cuda{has // 1000}]'"
            ) from error
        raise


def version(number: int) -> str:
    """13020 -> '13.2'."""
    return f"{number // 1000}.{number % 1000 // 10}"
