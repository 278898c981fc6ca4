"""mistral.rs in an environment of its own: adapters mixed in one batch, the log-probabilities of produced tokens.

The worker is workers/mistralrs_worker.py. Weights, arithmetic and KV cache are float32, and so are the probabilities
whose logarithms it shows: what is below 2^-126 is not compared.
"""

from collections.abc import Mapping

from ..config import LAYER_MODULES
from .hosted import Hosted, check_options, entry_of
from .interface import LORA_FEATURES, Capabilities, Entry
from .recipes import MISTRALRS

CAPABILITIES = Capabilities(
    readout="top",
    prompt_rows=False,
    mixed=True,
    dtypes=("float32",),
    modules=LAYER_MODULES,
    features=LORA_FEATURES | {"rope_scaling"},
    own_head_dim=False,
    operations=frozenset(("load", "unload", "reload", "prefix_cache", "cancel")),
)

OPTIONS: Mapping[str, tuple[str, ...]] = {"timeout": ()}


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    return entry_of(MISTRALRS, "mistral.rs, a serving engine in Rust", CAPABILITIES)


def make(options: Mapping[str, str]) -> Hosted:
    """Return the engine, not started. EngineError without its environment, or for an option that it does not have."""
    check_options("mistralrs", options, OPTIONS)
    return Hosted(MISTRALRS, "mistralrs_worker.py", CAPABILITIES, options)
