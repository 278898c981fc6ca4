"""Where CUDA's own headers are that the kernels include, on a machine that has them from pip and not from a toolkit.

CuPy's wheels bring none for CUDA 12.2 and later. The extras [cuda12] and [cuda13] bring NVIDIA's wheels, which unpack
into one folder, nvidia/, of site-packages:

    12   nvidia-cuda-runtime-cu12   nvidia/cuda_runtime/include   cuda_fp16.h, cuda_bf16.h, mma.h
         nvidia-cuda-nvcc-cu12      nvidia/cuda_nvcc/include      crt/mma.h
    13   nvidia-cuda-runtime        nvidia/cu13/include           cuda_fp16.h, cuda_bf16.h, mma.h
         nvidia-cuda-crt            nvidia/cu13/include           crt/mma.h
"""

import importlib.util
from pathlib import Path

PARTS = {12: ("cuda_runtime", "cuda_nvcc"), 13: ("cu13",)}  # major version of CUDA -> folders of nvidia/
NEEDED = ("cuda_fp16.h", "cuda_bf16.h", "mma.h", "crt/mma.h")


def nvidia_folders() -> list[Path]:
    """Return every nvidia/ of this Python's site-packages."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def include_folders(major: int) -> list[Path]:
    """Return the folders that hold all of CUDA's headers of this major version; none where one of them is missing.

    None, because headers of two places may be of two versions: a CUDA toolkit then has all, and CuPy finds that."""
    folders = [site / part / "include" for part in PARTS.get(major, ()) for site in nvidia_folders()]
    complete = all(any((folder / name).exists() for folder in folders) for name in NEEDED)
    return [folder for folder in folders if folder.is_dir()] if complete else []
