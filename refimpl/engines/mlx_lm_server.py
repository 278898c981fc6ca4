"""mlx-lm's server, in the environment of mlx_lm: an adapter for each request, the likeliest tokens of produced rows.

The worker is workers/mlx_lm_server_worker.py. A request names the folder of its adapter. The server has one adapter at
a time: a request of another one waits until those before it are answered.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..config import LAYER_MODULES
from .hosted import check_options, entry_of
from .interface import LORA_FEATURES, Capabilities, Entry
from .mlx_lm import MlxLM
from .recipes import MLX_LM

CAPABILITIES = Capabilities(
    readout="top",
    top_k=11,
    prompt_rows=False,
    mixed=False,
    dtypes=("float32",),
    modules=LAYER_MODULES,
    features=LORA_FEATURES | {"rope_scaling"},
    operations=frozenset(("load", "unload", "reload", "chunked_prefill", "cancel")),
)

OPTIONS: Mapping[str, tuple[str, ...]] = {
    # on: it keeps prefixes, as it does unless told otherwise. default: requests leave `model` away, which it allows.
    # in-place: a reload writes over the adapter's folder. Each has a defect of expected_failures/mlx_lm_server.toml.
    "prefix-cache": ("off", "on"),
    "model": ("named", "default"),
    "folders": ("fresh", "in-place"),
    "timeout": (),
}


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    return entry_of(MLX_LM, "mlx-lm's server on a CPU", CAPABILITIES, "mlx_lm_server")


def make(options: Mapping[str, str]) -> MlxLM:
    """Return the engine, not started. EngineError without its environment, or for an option that it does not have."""
    check_options("mlx_lm_server", options, OPTIONS)
    more = {"prefix_cache"} if options.get("prefix-cache") == "on" else set()
    capabilities = replace(CAPABILITIES, operations=CAPABILITIES.operations | more)
    return MlxLM(MLX_LM, "mlx_lm_server_worker.py", capabilities, options, name="mlx_lm_server")
