"""OpenVINO GenAI in an environment of its own: one request after another, the likeliest tokens of a row.

The worker is workers/openvino_genai_worker.py. The base is exported by Optimum, once for each process that asks here.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..config import LAYER_MODULES
from .hosted import Hosted, check_options, entry_of
from .interface import LORA_FEATURES, Capabilities, EngineError, Entry, Settings
from .recipes import OPENVINO_GENAI

CAPABILITIES = Capabilities(
    readout="top",
    top_k=64,
    prompt_rows=False,
    mixed=False,
    dtypes=("float32",),
    modules=LAYER_MODULES,
    features=LORA_FEATURES | {"sums", "window", "rope_scaling"},
    operations=frozenset(("load", "unload", "reload", "cancel")),
)

OPTIONS: Mapping[str, tuple[str, ...]] = {
    # batching: ContinuousBatchingPipeline, where prefixes may be cached, and each request of add_request() may name its
    # adapters. as-is: adapters as their files are. With defects of expected_failures/openvino_genai.toml, all but
    # batching alone.
    "pipeline": ("single", "batching"),
    "prefix-cache": ("off", "on"),
    "adapters": ("padded", "as-is", "request"),
    "timeout": (),
}

_exports: dict[tuple[str, float], tempfile.TemporaryDirectory[str]] = {}  # by model, and when it was written


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    return entry_of(OPENVINO_GENAI, "OpenVINO GenAI on a CPU", CAPABILITIES)


def make(options: Mapping[str, str]) -> Hosted:
    """Return the engine, not started. EngineError without its environment, or for an option that it does not have."""
    check_options("openvino_genai", options, OPTIONS)
    more = {"arrivals"} if options.get("pipeline") == "batching" else set()
    for key, value in (("prefix-cache", "on"), ("adapters", "request")):
        if options.get(key) == value and not more:
            raise EngineError(f"openvino_genai: option {key}={value} is one of pipeline=batching")
    if options.get("prefix-cache") == "on":
        more.add("prefix_cache")
    capabilities = replace(CAPABILITIES, operations=CAPABILITIES.operations | more)
    return OpenVinoGenAI(OPENVINO_GENAI, "openvino_genai_worker.py", capabilities, options)


class OpenVinoGenAI(Hosted):
    """Hosted, with a folder for each base that it has exported."""

    def start(self, settings: Settings) -> None:
        """Start the worker; it exports the base if this process has not asked for it before."""
        super().start(replace(settings, options={**settings.options, "exported": exported(settings.model)}))


def exported(model: Path) -> str:
    """Return the folder for the model's form in OpenVINO: empty, until the worker has written it."""
    written = max((file.stat().st_mtime for file in model.glob("*") if file.is_file()), default=0.0)
    key = str(model.resolve()), written
    if key not in _exports:
        _exports[key] = tempfile.TemporaryDirectory(prefix="loracle-openvino-")
    return _exports[key].name
