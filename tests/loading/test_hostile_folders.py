"""Folders as other programs and other hands leave them, on bases of several families: the right adapter, a warning, or
one line that says what it is. Never a traceback, never an adapter that is silently another one."""

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import lora_tensors, write_adapter
from test_families import write_config

from refimpl.config import ModelConfig
from refimpl.errors import AdapterError, AdapterWarning
from refimpl.loading.adapter_folder import load_adapter
from refimpl.loading.config_file import load_config
from refimpl.tools.inspect import inspect

Tensors = dict[str, np.ndarray]
PREFIX = "base_model.model."
# A class of each kind of family, and the modules that its adapters have here.
MODULES = {
    "Gemma3ForCausalLM": ("q_proj", "v_proj", "down_proj"),
    "Gemma2ForCausalLM": ("q_proj", "o_proj", "up_proj"),
    "Phi3ForCausalLM": ("qkv_proj", "o_proj", "gate_up_proj"),
    "Qwen3MoeForCausalLM": ("q_proj", "v_proj"),
    "GptOssForCausalLM": ("q_proj", "o_proj"),
}


@pytest.fixture(params=MODULES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """A small base, and the modules."""
    config = load_config(write_config(tmp_path, request.param))
    return config, MODULES[request.param]


def renamed(pattern: str, new: str) -> Callable[[Tensors], Tensors]:
    """Every tensor under another name."""
    return lambda tensors: {re.sub(pattern, new, name): x for name, x in tensors.items()}


def transposed(tensors: Tensors) -> Tensors:
    return {name: np.ascontiguousarray(x.T) for name, x in tensors.items()}


def swapped(tensors: Tensors) -> Tensors:
    other = {"lora_A": "lora_B", "lora_B": "lora_A"}
    return {re.sub("lora_[AB]", lambda match: other[match[0]], name): x for name, x in tensors.items()}


def with_norm(tensors: Tensors) -> Tensors:
    return tensors | {f"{PREFIX}model.norm.weight": np.ones(8, np.float32)}


def with_linear(tensors: Tensors) -> Tensors:
    return tensors | {f"{PREFIX}model.layers.0.self_attn.o_proj.weight": np.ones((8, 8), np.float32)}


READ = {
    "inside a model of images, transformers 5": renamed(r"model\.model\.layers", "model.model.language_model.layers"),
    "inside a model of images, transformers 4": renamed(r"model\.model\.layers", "model.language_model.model.layers"),
    "gpt-oss as Tinker spells it": renamed(r"self_attn", "attn"),
}
REFUSED = {
    "no prefix": (renamed(rf"^{re.escape(PREFIX)}", ""), "inject_adapter_in_model: put base_model.model. before them"),
    "compiled": (renamed(r"(layers\.\d+)\.", r"\1._orig_mod."), "torch.compile's prefix _orig_mod."),
    "FSDP": (renamed(r"(layers\.\d+)\.", r"\1._fsdp_wrapped_module."), "FSDP's wrapper is in it"),
    "checkpointed": (renamed(r"(layers\.\d+)\.", r"\1._checkpoint_wrapped_module."), "activation checkpointing"),
    "DDP": (renamed("^", "module."), "the prefix module."),
    "wrapped twice": (renamed("^", PREFIX), "it is wrapped twice"),
    "without its head": (renamed(r"model\.model\.", "model."), "one 'model.' is missing"),
    "the adapter's name": (renamed(r"\.weight$", ".sql.weight"), "the adapter's name left in"),
    "no end": (renamed(r"\.weight$", ""), "the end .weight is missing"),
    "small letters": (renamed(r"lora_([AB])", lambda match: f"lora_{match[1].lower()}"), "PEFT spells it lora_A"),
    "another architecture": (renamed(r"model\.layers", "transformer.h"), "transformer. is of another architecture"),
    "too deep": (renamed(r"layers\.1\.", "layers.70."), "made for a base with 71 layers"),
    "transposed": (transposed, "they are transposed, or each is the other"),
    "A for B": (swapped, "they are transposed, or each is the other"),
    "a norm": (with_norm, "model.norm.weight [8] is not supported: it is a whole parameter"),
    "a linear layer": (with_linear, "it is a whole parameter, and of those only embed_tokens, lm_head, score"),
}


@pytest.mark.parametrize("case", READ)
def test_names_of_others_are_the_same_adapter(base: Any, case: str, tmp_path: Path) -> None:
    config, modules = base
    tensors = lora_tensors(config, modules=modules)
    plain = load_adapter(write_adapter(tmp_path / "plain", tensors, target_modules=list(modules)), config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdapterWarning)
        folder = write_adapter(tmp_path / "a", READ[case](tensors), target_modules=list(modules))
        adapter = load_adapter(folder, config)
    assert adapter.lora.keys() == plain.lora.keys()
    for module, lora in adapter.lora.items():
        assert np.array_equal(lora.A, plain.lora[module].A) and np.array_equal(lora.B, plain.lora[module].B)


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_mean_something_else_are_one_line(base: Any, case: str, tmp_path: Path) -> None:
    config, modules = base
    change, says = REFUSED[case]
    tensors = change(lora_tensors(config, modules=modules))
    folder = write_adapter(tmp_path / "a", tensors, target_modules=list(modules))
    with pytest.raises(AdapterError) as error:
        load_adapter(folder, config)
    assert says in str(error.value) and len(str(error.value).splitlines()) == 1
    assert says in inspect(folder, config).problems[0]
    inspect(folder)  # without a base, too, it says something


def cut(folder: Path, size: int) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:size])


def linked(folder: Path) -> None:
    os.remove(folder / "adapter_model.safetensors")
    os.symlink("elsewhere.safetensors", folder / "adapter_model.safetensors")


def a_folder(folder: Path) -> None:
    os.remove(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").mkdir()


def error_page(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_text("<!DOCTYPE html><html><body>401 Unauthorized</body></html>")


def nested(folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({"default": json.loads(file.read_text())}))


def utf16(folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_bytes(file.read_text().encode("utf-16"))


FILES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: cut(folder, 0), "it has 0 bytes"),
    (lambda folder: cut(folder, 7), "it has 7 bytes"),
    (lambda folder: cut(folder, 3000), "is truncated: "),
    (linked, "adapter_model.safetensors: is a link to elsewhere.safetensors, which is not there"),
    (a_folder, "adapter_model.safetensors: cannot be read (Is a directory)"),
    (error_page, "is not a safetensors file: it is text, '<!DOCTYPE html>"),
    (nested, "is not a PEFT LoRA config"),
    (utf16, "is not valid JSON"),
    (
        lambda folder: os.rename(folder / "adapter_config.json", folder / "adapter_config.json.txt"),
        "but no adapter_config.json (adapter_config.json.txt is there: is it that?)",
    ),
    (
        lambda folder: os.rename(folder / "adapter_config.json", folder / "lora_config.json"),
        "but no adapter_config.json (lora_config.json is there: is it that?)",
    ),
]


@pytest.mark.parametrize(("damage", "says"), FILES)
def test_damaged_files_are_one_line(damage: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, "Gemma3ForCausalLM"))
    modules = MODULES["Gemma3ForCausalLM"]
    folder = write_adapter(tmp_path / "a", lora_tensors(config, modules=modules), target_modules=list(modules))
    damage(folder)
    with pytest.raises(AdapterError) as error:
        load_adapter(folder, config)
    assert says in str(error.value) and len(str(error.value).splitlines()) == 1
    assert says in "".join(inspect(folder, config).problems)
