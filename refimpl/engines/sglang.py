"""SGLang on a CPU, in an environment of its own: adapters mixed in one batch, log-probabilities of every token.

The worker is workers/sglang_worker.py. Of its LoRA this runs all but the kernels: the layers' torch backend is in their
place. SGLang reads no more of an adapter's config than r and lora_alpha; with the option adapters=any it is asked for
other scales as well. Modules of several ranks, or q_proj without v_proj, it does not load.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..config import LAYER_MODULES
from .hosted import Hosted, check_options, entry_of
from .interface import Capabilities, Entry
from .recipes import SGLANG, Recipe
from .worker import worker_path

CAPABILITIES = Capabilities(
    readout="logprobs",
    prompt_rows=True,
    mixed=True,
    dtypes=("float32",),
    modules=LAYER_MODULES,
    features=frozenset(("mixed_ranks", "rope_scaling")),
    operations=frozenset(("load", "unload", "reload", "evict", "prefix_cache", "chunked_prefill")),
)

OPTIONS: Mapping[str, tuple[str, ...]] = {
    # any: with defects of expected_failures/sglang.toml
    "adapters": ("plain", "any"),
    "timeout": (),
}


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    return entry_of(SGLANG, "SGLang on a CPU", CAPABILITIES)


def make(options: Mapping[str, str]) -> Hosted:
    """Return the engine, not started. EngineError without its environment, or for an option that it does not have."""
    check_options("sglang", options, OPTIONS)
    more = {"rslora", "alpha_pattern"} if options.get("adapters") == "any" else set()
    capabilities = replace(CAPABILITIES, features=CAPABILITIES.features | more)
    return Hosted(SGLANG, "sglang_worker.py", capabilities, options, stand_ins)


def stand_ins(recipe: Recipe) -> dict[str, str]:
    """Return the variables that make it run on a CPU."""
    return {"SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": str(worker_path("sglang_stand_ins"))}
