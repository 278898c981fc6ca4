"""F. Not applied: the adapter loads, nothing complains, and some or all of it does nothing."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ...adapter import Adapter
from ...adapter_slots import BoundAdapter, LoraWeights
from ...arrays import Array
from ...config import ATTENTION_MODULES, EMBED, LAYER_MODULES, LM_HEAD, MLP_MODULES, ModelConfig, Module
from ...ops import Ops
from .mutant import Family
from .steps import binding, but, loading

not_applied = Family("F", "not applied")


@not_applied.bug(
    "the adapter is loaded, and the base answers",
    "https://github.com/vllm-project/vllm/issues/34186",
    "https://github.com/huggingface/peft/issues/2787",
    "https://github.com/huggingface/peft/pull/2090",
    "https://github.com/verl-project/verl/issues/7285",
    "https://github.com/triton-inference-server/tensorrtllm_backend/issues/791",
)
def adapters_ignored() -> Ops:
    return but(lora_delta=lambda *call: None)


# Modules and layers whose names the loader does not know.


def without(*modules: str) -> Ops:
    """No LoRA on these modules."""
    return loading(lambda module, lora, config: None if module[1] in modules else lora)


@not_applied.bugs(
    LAYER_MODULES,
    "the LoRA of {} is left out: its name is mapped to nothing",
    "https://github.com/huggingface/text-generation-inference/issues/2441",
    "https://github.com/vllm-project/vllm/issues/48019",
)
def not_applied_to(module: str) -> Ops:
    return without(module)


@not_applied.bugs(
    ("embed_tokens", "lm_head"),
    "the LoRA of {} is skipped without a word",
    "https://github.com/unslothai/unsloth/pull/9331",
    "https://github.com/vllm-project/vllm/issues/48934",
    needs="{} LoRA",
)
def skipped(module: str) -> Ops:
    return without(module)


@not_applied.bug(
    "no LoRA in the MLP: the engine knows q, k, v and o only", "https://github.com/vllm-project/vllm/issues/49354"
)
def attention_only() -> Ops:
    return without(*MLP_MODULES)


@not_applied.bug(
    "no LoRA in attention: its module has another name in this engine",
    "https://github.com/vllm-project/vllm/issues/49354",
)
def mlp_only() -> Ops:
    return without(*ATTENTION_MODULES)


@not_applied.bug("the LoRA of the first layer is left out")
def first_layer_missed() -> Ops:
    return loading(lambda module, lora, config: None if module[0] == 0 else lora)


@not_applied.bug("the LoRA of the last layer is left out")
def last_layer_missed() -> Ops:
    return loading(lambda module, lora, config: None if module[0] == config.num_hidden_layers - 1 else lora)


@not_applied.bug("only the first layer has its LoRA", needs="two layers")
def first_layer_only() -> Ops:
    return loading(lambda module, lora, config: None if module[0] > 0 else lora)


@not_applied.bug("the bias of lora_B is left out", needs="lora_bias")
def lora_bias_dropped() -> Ops:
    return loading(lambda module, lora, config: dataclasses.replace(lora, bias=None))


@not_applied.bug(
    "the LoRA of a tied embedding is applied to the lm_head as well, where PEFT does not", needs="tied embedding"
)
def tied_head_takes_the_embeddings_delta() -> Ops:
    def tied(bound: BoundAdapter, adapter: Adapter, config: ModelConfig) -> BoundAdapter:
        lora = bound.lora.get(EMBED)
        if lora is None or not config.tie_word_embeddings or LM_HEAD in bound.lora or LM_HEAD in bound.replaced:
            return bound
        head = LoraWeights(lora.B.T, lora.A.T, lora.scale)  # row v of the table gets scale * B A[:, v]
        return dataclasses.replace(bound, lora={**bound.lora, LM_HEAD: head})

    return binding(tied)


# Whole layers that an adapter brings along.


@not_applied.bug(
    "modules_to_save: the adapter's lm_head is dropped",
    "https://github.com/vllm-project/vllm/issues/9280",
    needs="modules_to_save",
)
def saved_lm_head_dropped() -> Ops:
    return whole_layers(lambda module: module != LM_HEAD)


@not_applied.bug(
    "modules_to_save: the adapter's embed_tokens is dropped",
    "https://github.com/ggml-org/llama.cpp/issues/11554",
    needs="modules_to_save",
)
def saved_embedding_dropped() -> Ops:
    return whole_layers(lambda module: module != EMBED)


def whole_layers(keep: Callable[[Module], bool]) -> Ops:
    """Only these of the layers that an adapter brings along."""

    def changed(bound: BoundAdapter, adapter: Adapter, config: ModelConfig) -> BoundAdapter:
        kept = {module: x for module, x in bound.replaced.items() if keep(module)}
        return dataclasses.replace(bound, replaced=kept)

    return binding(changed)


@not_applied.bug('the biases that an adapter brings along (bias="all") are dropped', needs="base biases")
def saved_biases_dropped() -> Ops:
    return binding(lambda bound, adapter, config: dataclasses.replace(bound, biases={}))


@not_applied.bug("the lm_head and the biases that an adapter brings along are dropped", needs="modules_to_save")
def saved_lm_head_and_biases_dropped() -> Ops:
    def changed(bound: BoundAdapter, adapter: Adapter, config: ModelConfig) -> BoundAdapter:
        embedding = {module: x for module, x in bound.replaced.items() if module == EMBED}
        return dataclasses.replace(bound, replaced=embedding, biases={})

    return binding(changed)


@not_applied.bug(
    "modules_to_save of the first adapter that has some serve every adapter that has some",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/3885",
    needs="modules_to_save",
)
def saved_layers_of_the_first_adapter() -> Ops:
    first: dict[tuple[ModelConfig, Module], Array] = {}

    def changed(bound: BoundAdapter, adapter: Adapter, config: ModelConfig) -> BoundAdapter:
        weights = {module: first.setdefault((config, module), x) for module, x in bound.replaced.items()}
        return dataclasses.replace(bound, replaced=weights)

    return binding(changed)


@not_applied.bug("the words that an adapter adds to the vocabulary have rows of zeros", needs="grown vocabulary")
def grown_rows_are_zero() -> Ops:
    def changed(bound: BoundAdapter, adapter: Adapter, config: ModelConfig) -> BoundAdapter:
        weights = {}
        for module, x in bound.replaced.items():
            of_the_base = np.arange(len(x)) < config.vocab_size
            weights[module] = np.where(of_the_base[:, None], x, np.zeros((), x.dtype))
        return dataclasses.replace(bound, replaced=weights)

    return binding(changed)
