"""GPUs as their data sheets have them, and what this machine does, measured.

A data sheet's figures are upper bounds: a copy reaches about nine tenths of the bandwidth, and a GPU that multiplies
all the time lowers its clock.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import device_namespace
from ..cuda import runner
from .cost import Device
from .machine import cpu_name

COPY_BYTES = 64 << 20  # of each array of the copy: larger than a CPU's caches, or those would be measured
GEMM_SIZE = 1024  # of the square product; a larger one is nearer to the peak, and takes longer
REPEATS = 5  # the best of them counts: a shared machine is slower at times, and never faster


def data_sheet(name: str, memory: int, bandwidth: float, half: float, single: float, source: str) -> tuple[str, Device]:
    """GB, GB/s, dense TFLOP/s of tensor cores in a half type with float32 sums, and TFLOP/s in float32 without them."""
    peaks = {"float16": half * 1e12, "bfloat16": half * 1e12, "float32": single * 1e12}
    return name, Device(name, memory * 10**9, bandwidth * 1e9, peaks, source)


# Where a sheet gives tensor cores "with sparsity", half of it stands here.
GPUS = dict(
    (
        data_sheet("h100", 80, 3350, 989.4, 67, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
        data_sheet("h200", 141, 4800, 989.4, 67, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
        data_sheet("a100", 80, 2039, 312, 19.5, "NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM"),
        data_sheet("l40s", 48, 864, 362.05, 91.6, "NVIDIA L40S GPU data sheet"),
        data_sheet("l4", 24, 300, 121, 30.3, "NVIDIA L4 Tensor Core GPU data sheet"),
        data_sheet("rtx4090", 24, 1008, 165.2, 82.6, "NVIDIA Ada GPU Architecture white paper, GeForce RTX 4090"),
    )
)
THIS = "this"


def this_device(dtype: str) -> Device:
    """This machine, with its peak for this type: its GPU if the kernels run on one, else its CPU."""
    return measured_gpu(dtype) if runner.device() == "gpu" else measured_cpu(dtype)


def measured_cpu(dtype: str) -> Device:
    """Bandwidth of a copy and rate of a product, with the threads that NumPy's BLAS has.

    Half types are multiplied as float32 (matmul.py)."""
    peak = gemm_rate(np, "float64" if dtype == "float64" else "float32", GEMM_SIZE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    about = f"measured just now: {cpu_name()}, load {os.getloadavg()[0]:.1f}"
    return Device(THIS, memory, copy_rate(np), {dtype: peak}, about)


def measured_gpu(dtype: str) -> Device:
    """The same of CUDA's current device. bfloat16 stands for float16, which tensor cores take as fast."""
    xp = device_namespace("cuda")
    properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)
    peak = gemm_rate(xp, "float16" if dtype == "bfloat16" else dtype, 8 * GEMM_SIZE)
    about = f"measured just now: {properties['name'].decode()}"
    return Device(THIS, properties["totalGlobalMem"], copy_rate(xp, 16 * COPY_BYTES), {dtype: peak}, about)


def copy_rate(xp: Any, size: int = COPY_BYTES, timer: Callable[[], float] | None = None) -> float:
    """Bytes a second of a copy in memory, on this clock: each is read once and written once."""
    source = xp.ones(size // 4, "float32")
    target = xp.empty_like(source)
    return 2 * source.nbytes / best(lambda: xp.copyto(target, source), xp, timer)


def gemm_rate(xp: Any, dtype: str, n: int) -> float:
    """Flops a second of a square product of this type."""
    x = xp.ones((n, n), dtype)
    y = xp.empty_like(x)
    return 2 * n**3 / best(lambda: xp.matmul(x, x, out=y), xp)


def best(run: Callable[[], Any], xp: Any, timer: Callable[[], float] | None = None) -> float:
    """Seconds of the fastest of some runs, after one that warms up; a GPU is waited for."""
    clock = timer or time.perf_counter

    def once() -> float:
        start = clock()
        run()
        if xp is not np:
            xp.cuda.get_current_stream().synchronize()
        return clock() - start

    return min([once() for _ in range(REPEATS + 1)][1:])
