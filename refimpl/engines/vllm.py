"""vLLM on a CPU, in an environment of its own: several adapters in one forward pass, log-probabilities of every token.

The worker is workers/vllm_worker.py. For the rows of a prompt vLLM computes all of it, whatever is cached. With prefix
caching that would hide the reuse: then only the rows of produced tokens are requested.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..config import LAYER_MODULES
from .hosted import Hosted, check_options, entry_of
from .interface import LORA_FEATURES, Capabilities, Entry
from .recipes import VLLM

CAPABILITIES = Capabilities(
    readout="logprobs",
    prompt_rows=True,
    mixed=True,
    dtypes=("float32", "bfloat16", "float16"),
    modules=LAYER_MODULES,
    features=LORA_FEATURES | {"window", "rope_scaling"},
    operations=frozenset(
        ("load", "unload", "reload", "evict", "prefix_cache", "chunked_prefill", "arrivals", "cancel", "preempt")
    ),
    max_rank=512,
    head_dims=(32,),  # the smallest that its attention on a CPU has
)

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "last-slot": ("guarded", "free"),  # free: as users start it, and with the defect of expected_failures/vllm.toml
    "readout": ("logprobs", "logits"),  # vLLM's logprobs_mode
    "timeout": (),
}


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    return entry_of(VLLM, "vLLM on a CPU", CAPABILITIES)


def make(options: Mapping[str, str]) -> Hosted:
    """Return the engine, not started. EngineError without its environment, or for an option that it does not have."""
    check_options("vllm", options, OPTIONS)
    capabilities = replace(CAPABILITIES, readout=options.get("readout", "logprobs"))
    return Hosted(VLLM, "vllm_worker.py", capabilities, options)
