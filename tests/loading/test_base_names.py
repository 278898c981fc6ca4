"""An adapter that says it was trained on another family's model is not loaded without a word, though its shapes fit."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from folders import BASE, lora_tensors, model_tensors, write_adapter, write_model

import refimpl
from refimpl import cli
from refimpl.errors import AdapterWarning
from refimpl.families import FAMILIES
from refimpl.loading.base_names import is_of_another_family

SAME = """meta-llama/Llama-3.1-8B llama; TinyLlama/TinyLlama-1.1B llama; HuggingFaceTB/SmolLM2-135M llama;
codellama/CodeLlama-7b llama; example/dolphin-2.9 llama; deepseek-ai/DeepSeek-R1-Distill-Qwen-7B qwen2;
deepseek-ai/deepseek-llm-7b-base llama; nvidia/Llama-3.1-Nemotron-8B llama; mistralai/Mistral-7B-v0.1 mistral;
mistralai/Ministral-8B-Instruct-2410 mistral; mistralai/Mixtral-8x7B-v0.1 mixtral; Qwen/Qwen2.5-7B qwen2;
Qwen/Qwen3-30B-A3B qwen3_moe; Qwen/Qwen1.5-MoE-A2.7B qwen2_moe; Qwen/QwQ-32B qwen2; google/gemma-2b gemma;
google/gemma-2-2b gemma2; google/gemma-3-4b-it gemma3_text; microsoft/phi-4 phi3; Phi-3.5-mini-instruct phi3;
ibm-granite/granite-3.0-1b-a400m granitemoe; ibm-granite/granite-4.0-micro granitemoehybrid; allenai/OLMo-2-7B olmo2;
THUDM/GLM-4-9B-0414 glm4; zai-org/GLM-4.5 glm4_moe; openai/gpt-oss-20b gpt_oss; deepseek-ai/DeepSeek-R1 deepseek_v3;
moonshotai/Kimi-K2 deepseek_v3; bigcode/starcoder2-3b starcoder2; example/c4ai-command-r7b cohere2; a/Seed-OSS seed_oss;
Gemma3ForConditionalGeneration gemma3_text; mistralai/Ministral-3-3B ministral3; ERNIE-4.5-0.3B-PT ernie4_5;
LGAI-EXAONE/EXAONE-4.0-1.2B exaone4; my/own llama; /home/me/qwen/checkpoint-1 llama"""
OTHER = """Qwen/Qwen2.5-7B llama; Qwen/Qwen2.5-7B qwen3; Qwen/Qwen3-8B qwen2; mistralai/Mistral-7B-v0.1 llama;
meta-llama/Llama-2-7b mistral; google/gemma-2-2b gemma3_text; google/gemma-3-1b gemma2; microsoft/Phi-4-mini llama;
openai/gpt-oss-20b llama; deepseek-ai/DeepSeek-V3 deepseek_v2; LlamaForCausalLM qwen2; mistralai/Mixtral-8x7B mistral;
Qwen/QwQ-32B llama; Qwen/Qwen3-8B mistral; C:\\models\\gemma-3-1b llama"""


def pairs(table: str) -> list[list[str]]:
    """Name and model_type of each entry."""
    return [entry.split() for entry in table.split(";")]


@pytest.mark.parametrize(("name", "model_type"), pairs(SAME))
def test_a_name_of_this_family_or_of_none(name: str, model_type: str) -> None:
    assert not is_of_another_family(name, model_type)


@pytest.mark.parametrize(("name", "model_type"), pairs(OTHER))
def test_a_name_of_another_family(name: str, model_type: str) -> None:
    assert is_of_another_family(name, model_type)


def test_every_family_knows_its_own_class_and_type() -> None:
    for name, family in FAMILIES.items():
        assert not is_of_another_family(name, family.model_type)
        assert not is_of_another_family(family.model_type, family.model_type)


def warned(folder: Path, **keys: Any) -> list[str]:
    """The warnings of loading an adapter with these keys for a Llama that does not say what it is called."""
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        refimpl.load_adapter(write_adapter(folder, lora_tensors(), **keys), replace(BASE, model_type="llama"))
    return [str(message.message) for message in messages if issubclass(message.category, AdapterWarning)]


def test_what_is_warned_of(tmp_path: Path) -> None:
    elsewhere = write_model(tmp_path / "elsewhere", model_tensors())
    description = json.loads((elsewhere / "config.json").read_text())
    for model_type, fits in (("gpt2", False), ("qwen3", False), ("llava", True), ("llama", True)):
        (elsewhere / "config.json").write_text(json.dumps(description | {"model_type": model_type}))
        messages = warned(tmp_path / model_type, base_model_name_or_path=str(elsewhere))
        assert len(messages) == (not fits) and all(f"whose model_type is '{model_type}'" in text for text in messages)
    [message] = warned(tmp_path / "named", base_model_name_or_path="Qwen/Qwen2.5-7B")
    assert "'Qwen/Qwen2.5-7B', and this base is of another family, llama: it fits, and answers otherwise" in message
    [message] = warned(tmp_path / "class", auto_mapping={"base_model_class": "Qwen2ForCausalLM"})
    assert "auto_mapping is of the class 'Qwen2ForCausalLM'" in message
    assert not warned(tmp_path / "own", auto_mapping={"base_model_class": "LlamaForCausalLM"})
    [message] = warned(tmp_path / "none", alora_invocation_tokens=[])
    assert "alora_invocation_tokens is empty: it acts on every token, as plain LoRA does" in message


@pytest.mark.filterwarnings("ignore:.*has no tokenizer")
@pytest.mark.parametrize("command", [["generate", "--max-new-tokens", "1"], ["logits", "--output", "{}/x.safetensors"]])
def test_the_commands_warn_in_one_line(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, prompts = write_model(tmp_path / "base", model_tensors()), tmp_path / "prompts.jsonl"
    folder = write_adapter(tmp_path / "a", lora_tensors(), base_model_name_or_path="Qwen/Qwen3-8B")
    prompts.write_text(json.dumps({"adapter": "a", "prompt_ids": [3, 1, 4]}))
    words = [word.format(tmp_path) for word in command]
    code = cli.main([*words, "--model", str(base), "--adapter", f"a={folder}", "--prompts", str(prompts)])
    errors = capsys.readouterr().err
    assert code == 0 and errors.count("\n") == 1 and "is of another family, llama" in errors
