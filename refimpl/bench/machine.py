"""Where something was measured: a figure without its machine, driver and versions is no figure."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .. import __version__
from ..cuda import runner

PACKAGES = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "cupy", "torch", "triton", "transformers", "peft", "ml_dtypes")


def about() -> dict[str, Any]:
    """The machine, as a table of strings and numbers."""
    where = runner.device()
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "kernels_run_on": where,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "loracle": __version__,
        "packages": packages(PACKAGES),
    }
    return facts | (gpu() if where == "gpu" else {"compiler": compiler()})


def cpu_name() -> str:
    """As the kernel calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def compiler() -> str:
    """The first line of what the C++ compiler says of itself."""
    from ..cuda.runner.cpu import compiler, compiler_version

    return compiler_version(compiler()).partition("\n")[0]


def packages(names: Sequence[str]) -> dict[str, str]:
    """Name -> version of those that are installed."""
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def gpu() -> dict[str, Any]:
    """Its name, its limits, the driver and CUDA."""
    from ..arrays import device_namespace

    cupy = device_namespace("cuda")
    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    runtime = cupy.cuda.runtime
    return {
        "gpu": properties["name"].decode(),
        "compute_capability": f"{device.compute_capability[:-1]}.{device.compute_capability[-1]}",
        "multiprocessors": properties["multiProcessorCount"],
        "l2_bytes": properties["l2CacheSize"],
        "memory_bytes": properties["totalGlobalMem"],
        "driver": driver(),
        "driver_cuda": runtime.driverGetVersion(),
        "runtime_cuda": runtime.runtimeGetVersion(),
        "nvrtc": list(cupy.cuda.nvrtc.getVersion()),
    }


def driver() -> str:
    """The driver's own number, from its tool; empty where that is not there."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        return done.stdout.strip().partition("\n")[0]
    return ""
