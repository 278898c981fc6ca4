"""A Tinker adapter is what it is under PEFT's names: unembed_tokens is lm_head, attn is self_attn, w1, w2 and w3 are
the modules of an expert, and all-linear means what was trained."""

import re
from pathlib import Path

import numpy as np
import pytest
from folders import BASE, lora_name, lora_tensors, random, refused, write_adapter
from test_expert_layouts import EXPERTS, Drawn, base_of, layout_4, load, pairs_of

import refimpl
from refimpl.config import LM_HEAD
from refimpl.errors import AdapterError
from refimpl.tools.inspect import inspect

UNEMBED = "base_model.model.model.unembed_tokens.lora_{}.weight"
INNER = ("q_proj", "k_proj", "v_proj", "o_proj")


def head() -> dict[str, np.ndarray]:
    """LoRA on the lm_head of BASE."""
    return {"A": random((3, 12), 5), "B": random((13, 3), 6)}


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "unembed_tokens"]])
@pytest.mark.parametrize("short", [False, True])
def test_unembed_tokens_is_lm_head(tmp_path: Path, targets: str | list[str], short: bool) -> None:
    inner = lora_tensors(modules=("q_proj",))
    name = UNEMBED.replace("model.model.model", "model.model") if short else UNEMBED
    tinker = inner | {name.format(half): x for half, x in head().items()}
    pefts = inner | {lora_name(LM_HEAD, f"lora_{half}.weight"): x for half, x in head().items()}
    first = refimpl.load_adapter(write_adapter(tmp_path / "tinker", tinker, target_modules=targets), BASE)
    second = refimpl.load_adapter(write_adapter(tmp_path / "peft", pefts, target_modules=["q_proj", "lm_head"]), BASE)
    assert set(first.config.target_modules) == set(second.config.target_modules) == {"q_proj", "lm_head"}
    assert first.lora.keys() == second.lora.keys()
    for module, lora in first.lora.items():
        assert np.array_equal(lora.A, second.lora[module].A) and np.array_equal(lora.B, second.lora[module].B)
    assert inspect(tmp_path / "tinker", BASE).ok and inspect(tmp_path / "tinker").ok


def test_experts_and_attention_in_gpt_oss_names(tmp_path: Path) -> None:
    """As Tinker writes gpt-oss: attn for self_attn, and no LoRA on the router, which all-linear would have."""
    base = base_of()
    example = Drawn(base, 3, pairs_of(base, 3, 1))
    tensors = lora_tensors(base, modules=INNER) | layout_4(example)
    tinker = {re.sub(r"self_attn", "attn", name): x for name, x in tensors.items()}
    expected = load(
        write_adapter(tmp_path / "peft", tensors, target_modules=[*INNER, *EXPERTS["target_modules"]]), base
    )
    adapter = load(write_adapter(tmp_path / "tinker", tinker, target_modules="all-linear"), base)
    assert adapter.lora.keys() == expected.lora.keys() and len(adapter.lora) > 2 * len(INNER)
    for module, lora in adapter.lora.items():
        assert np.array_equal(lora.A, expected.lora[module].A) and np.array_equal(lora.B, expected.lora[module].B)


def test_both_names_of_one_module_are_refused(tmp_path: Path) -> None:
    tensors = {UNEMBED.format(half): x for half, x in head().items()}
    tensors |= {lora_name(LM_HEAD, f"lora_{half}.weight"): x for half, x in head().items()}
    with refused(AdapterError, "unembed_tokens.lora_A.weight [3, 12] is not supported: a name of Tinker's"):
        refimpl.load_adapter(write_adapter(tmp_path, tensors, target_modules="all-linear"), BASE)


def test_a_half_that_is_missing(tmp_path: Path) -> None:
    tensors = lora_tensors(modules=("q_proj",)) | {UNEMBED.format("A"): head()["A"]}
    with refused(AdapterError, "lm_head", "lora_B"):
        refimpl.load_adapter(write_adapter(tmp_path, tensors, target_modules="all-linear"), BASE)
