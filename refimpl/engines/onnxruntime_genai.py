"""ONNX Runtime GenAI in an environment of its own: one adapter per model, all logits.

Its model builder reads a PEFT folder through PEFT and writes a model with A and B in it; the worker is
workers/onnxruntime_genai_worker.py.
"""

from collections.abc import Mapping

from ..config import LAYER_MODULES
from .hosted import Hosted, check_options, entry_of
from .interface import LORA_FEATURES, Capabilities, Entry
from .recipes import ONNXRUNTIME_GENAI

CAPABILITIES = Capabilities(
    readout="logits",
    prompt_rows=True,
    mixed=False,
    dtypes=("float32",),
    modules=LAYER_MODULES,
    features=LORA_FEATURES,
    operations=frozenset(("load", "unload", "reload", "chunked_prefill", "cancel")),
)

OPTIONS: Mapping[str, tuple[str, ...]] = {"timeout": ()}


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    return entry_of(ONNXRUNTIME_GENAI, "ONNX Runtime GenAI on a CPU", CAPABILITIES)


def make(options: Mapping[str, str]) -> Hosted:
    """Return the engine, not started. EngineError without its environment, or for an option that it does not have."""
    check_options("onnxruntime_genai", options, OPTIONS)
    return Hosted(ONNXRUNTIME_GENAI, "onnxruntime_genai_worker.py", CAPABILITIES, options)
