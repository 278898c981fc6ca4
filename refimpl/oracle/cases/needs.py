"""What a case needs of an engine, in the words of its capabilities: to ask one that declares less would say nothing."""

from ...config import LAYER_MODULES, Rope
from ...engines.interface import Capabilities
from .case import Case, Load, Run, Unload, keys_of, loaded_before, replay
from .testbed import Testbed


def needs(case: Case, testbed: Testbed) -> set[str]:
    """Return the features, the operations and the modules of adapters that the case has."""
    needed, config = set[str](), testbed.model.config
    for step, meaning in replay(case.steps, loaded_before(case, testbed)):
        if isinstance(step, Load):
            needed.add("reload" if step.name in meaning else "load")
        elif isinstance(step, Unload):
            needed.add("unload")
        elif isinstance(step, Run):
            for request in step.requests:
                weighted = keys_of(request, meaning)
                needed |= {"sums"} if request.adapter_weights else set()
                for key, _ in weighted:
                    needed |= _of_adapter(testbed, key)
    if config.model_type in ("llama", "mistral"):  # what other bases have is declared with their family
        needed |= {"window"} if config.sliding_window else set()
        needed |= {"rope_scaling"} if config.rope is not None and config.rope.type != Rope().type else set()
        needed |= {"biases"} if config.attention_bias or config.mlp_bias else set()
    return needed


def _of_adapter(testbed: Testbed, key: str) -> set[str]:
    adapter, vocab = testbed.adapters[key], testbed.model.config.vocab_size
    config = adapter.config
    holds = {
        "rslora": config.use_rslora,
        "rank_pattern": bool(config.rank_pattern),
        "alpha_pattern": bool(config.alpha_pattern),
        "lora_bias": any(lora.bias is not None for lora in adapter.lora.values()),
        "biases": bool(adapter.biases),
        "modules_to_save": any(len(layer) == vocab for layer in adapter.replaced.values()),
        "grown_vocabulary": any(len(layer) != vocab for layer in adapter.replaced.values()),
    }
    return {name for name, value in holds.items() if value} | {name for _, name in adapter.lora}


def missing(case: Case, testbed: Testbed, capabilities: Capabilities) -> list[str]:
    """Return what the engine does not declare of that. Modules that a Llama has not are declared with a family."""
    declared = {*capabilities.features, *capabilities.operations, *capabilities.modules}
    of_family = set(testbed.model.config.layer_modules) - set(LAYER_MODULES)
    return sorted(needs(case, testbed) - declared - of_family)
