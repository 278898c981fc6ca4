"""Llama and Mistral (transformers, configuration_llama.py, configuration_mistral.py): what all others differ from."""

from typing import Any

from .family import EOS, LLAMA_BIASES, Family

LLAVA = (("LlavaForConditionalGeneration", "llava"), ("LlavaNextForConditionalGeneration", "llava_next"))
ELSEWHERE: dict[str, Any] = {"torchtune": "neighbours", "megatron": True, "gguf": "llama"}
LLAMA = Family(
    "LlamaForCausalLM",
    "llama",
    {**EOS, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    biases=LLAMA_BIASES,
    **ELSEWHERE,
    called=("smollm", "deepseek", "granite"),
    wrappers=(*LLAVA, ("Idefics3ForConditionalGeneration", "idefics3"), ("SmolVLMForConditionalGeneration", "smolvlm")),
)
MISTRAL = Family(
    "MistralForCausalLM",
    "mistral",
    {**EOS, "rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    windowed=True,
    **ELSEWHERE,
    called=("ministral",),
    wrappers=(*LLAVA, ("Mistral3ForConditionalGeneration", "mistral3")),
)
FAMILIES = (LLAMA, MISTRAL)
