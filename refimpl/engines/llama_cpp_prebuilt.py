"""llama.cpp's library as node-llama-cpp's package of npm has it, compiled: for machines without a compiler.

All else is llama_cpp.py's: its worker, what it can, its options. The library has a file for each generation of CPUs,
and takes the best one that runs here. It is for x86-64 under Linux.
"""

from collections.abc import Mapping

from .environments import folder
from .hosted import Hosted, check_options, entry_of
from .interface import Entry
from .llama_cpp import CAPABILITIES, OPTIONS
from .recipes import LLAMA_CPP_PREBUILT, Recipe

LIBRARIES = "node/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    return entry_of(LLAMA_CPP_PREBUILT, "llama.cpp's library as npm has it, compiled", CAPABILITIES)


def make(options: Mapping[str, str]) -> Hosted:
    """Return the engine, not started. EngineError without its environment, or for an option that it does not have."""
    check_options("llama_cpp_prebuilt", options, OPTIONS)
    return Hosted(LLAMA_CPP_PREBUILT, "llama_cpp_worker.py", CAPABILITIES, options, libraries)


def libraries(recipe: Recipe) -> dict[str, str]:
    """Return the variables that name the folder of the libraries: to llama-cpp-python, and to the worker."""
    path = str(folder(recipe) / LIBRARIES)
    return {"LLAMA_CPP_LIB_PATH": path, "LORACLE_GGML_BACKENDS": path}
