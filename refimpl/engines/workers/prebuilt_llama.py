"""llama-cpp-python over a libllama that came compiled, if LORACLE_GGML_BACKENDS names the folder of its libraries.

Such a build has a library for each generation of CPUs, from which ggml is to choose before a model is loaded; it may
lack functions that llama-cpp-python declares, which matters to whoever calls one.
"""

import ctypes
import os
import platform
from typing import Any


def import_llama_cpp() -> Any:
    """Return the module, its backends loaded. ImportError where no backend runs on this CPU."""
    folder = os.environ.get("LORACLE_GGML_BACKENDS")
    if folder is None:
        import llama_cpp

        return llama_cpp
    ggml = ctypes.CDLL(os.path.join(folder, "libggml.so"))
    ggml.ggml_backend_load_all_from_path(folder.encode())
    ggml.ggml_backend_reg_count.restype = ctypes.c_size_t
    if not ggml.ggml_backend_reg_count():
        raise ImportError(f"{folder}: none of these libraries runs on this CPU ({platform.machine()})")
    get_symbol = ctypes.CDLL.__getattr__

    def symbol_or_stand_in(library: ctypes.CDLL, name: str) -> Any:
        try:
            return get_symbol(library, name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return absent(name)

    ctypes.CDLL.__getattr__ = symbol_or_stand_in  # type: ignore[method-assign]
    try:
        import llama_cpp
    finally:
        ctypes.CDLL.__getattr__ = get_symbol  # type: ignore[method-assign]
    return llama_cpp


def absent(name: str) -> Any:
    """Return what stands in for a function that this build does not have."""

    def call(*_: Any) -> None:
        raise NotImplementedError(f"this libllama has no {name}")

    return call


if __name__ == "__main__":
    print(import_llama_cpp().__version__)
