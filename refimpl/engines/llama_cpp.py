"""llama.cpp's library, in an environment of its own: one adapter per forward pass, the logits of every token.

The worker is workers/llama_cpp_worker.py. It starts llama.cpp for float32 throughout; with the options kv=f16 and
flash=on it computes as llama.cpp does unless told otherwise.
"""

import os
from collections.abc import Mapping

from ..config import LAYER_MODULES
from .environments import folder
from .hosted import Hosted, check_options, entry_of
from .interface import LORA_FEATURES, Capabilities, Entry
from .recipes import LLAMA_CPP, Recipe

CAPABILITIES = Capabilities(
    readout="logits",
    prompt_rows=True,
    mixed=False,
    dtypes=("float32",),
    modules=LAYER_MODULES,
    features=LORA_FEATURES | {"sums", "rope_scaling"},
    operations=frozenset(("load", "unload", "reload", "chunked_prefill", "arrivals", "cancel")),
)

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "kv": ("f32", "f16"),
    "flash": ("off", "on", "auto"),
    "threads": ("1", "2", "4", "8"),
    "timeout": (),
}


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    return entry_of(LLAMA_CPP, "llama.cpp's library through ctypes", CAPABILITIES)


def make(options: Mapping[str, str]) -> Hosted:
    """Return the engine, not started. EngineError without its environment, or for an option that it does not have."""
    check_options("llama_cpp", options, OPTIONS)
    return Hosted(LLAMA_CPP, "llama_cpp_worker.py", CAPABILITIES, options, library)


def library(recipe: Recipe) -> dict[str, str]:
    """Return the variable with libllama's folder: none if the user set it, or the user's own python; else our build."""
    if recipe.variable in os.environ or "LLAMA_CPP_LIB_PATH" in os.environ:
        return {}
    return {"LLAMA_CPP_LIB_PATH": str(folder(recipe) / "build" / "bin")}
